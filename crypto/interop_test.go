package crypto

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"github.com/flynn/noise"
)

// flynnSide makes a side of a vector with the other implementation.
func flynnSide(t testing.TB, v vector, initiator bool) *noise.HandshakeState {
	t.Helper()
	pair := func(k *DHPrivate) noise.DHKey {
		public := k.Public()
		return noise.DHKey{Private: k[:], Public: public[:]}
	}
	patterns := map[Pattern]noise.HandshakePattern{
		KK: noise.HandshakeKK, KKpsk0: noise.HandshakeKK, IK: noise.HandshakeIK, NK: noise.HandshakeNK,
	}
	c := noise.Config{
		CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256),
		Pattern:     patterns[v.pattern], Initiator: initiator, Prologue: v.prologue, Random: rand.Reader,
	}
	if v.psk != nil {
		c.PresharedKey = v.psk[:]
	}
	ephemeral := v.respE
	if spec := patternSpecs[v.pattern]; initiator {
		ephemeral = v.initE
		c.PeerStatic = pair(v.respS).Public
		if spec.sendsStatic() {
			c.StaticKeypair = pair(v.initS)
		}
	} else {
		c.StaticKeypair = pair(v.respS)
		if spec.knownInit {
			c.PeerStatic = pair(v.initS).Public
		}
	}
	if ephemeral != nil {
		c.Random = bytes.NewReader(ephemeral[:])
	}
	h, err := noise.NewHandshakeState(c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func freshDH(t testing.TB) *DHPrivate {
	k, err := GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	return &k
}

// TestInterop runs live handshakes with fresh keys against flynn/noise, with
// each implementation on each side, and sends data both ways afterwards.
func TestInterop(t *testing.T) {
	t.Parallel()
	for p, spec := range patternSpecs {
		for _, weInitiate := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/initiator=%t", p, weInitiate), func(t *testing.T) {
				t.Parallel()
				for range 8 {
					v := vector{pattern: p, prologue: []byte(t.Name()), initS: freshDH(t), respS: freshDH(t)}
					if spec.psk {
						v.psk = (*[32]byte)(freshDH(t))
					}
					interop(t, v, weInitiate)
				}
			})
		}
	}
}

func interop(t *testing.T, v vector, weInitiate bool) {
	t.Helper()
	init, resp := vectorSides(t, v)
	ours := resp
	if weInitiate {
		ours = init
	}
	theirs := flynnSide(t, v, !weInitiate)
	var c1, c2 *noise.CipherState
	for i := range 2 {
		payload := []byte{byte(i), 1, 2, 3}
		var got []byte
		if (i == 0) == weInitiate {
			msg, err := ours.Write(nil, payload)
			if err != nil {
				t.Fatal(err)
			}
			if got, c1, c2, err = theirs.ReadMessage(nil, msg); err != nil {
				t.Fatalf("message %d: theirs refuses: %v", i, err)
			}
		} else {
			msg, a, b, err := theirs.WriteMessage(nil, payload)
			if err != nil {
				t.Fatal(err)
			}
			c1, c2 = a, b
			if got, err = ours.Read(nil, msg); err != nil {
				t.Fatalf("message %d: ours refuses: %v", i, err)
			}
		}
		if !bytes.Equal(got, payload) {
			t.Fatalf("message %d: payload %x", i, got)
		}
	}
	if hash := ours.Hash(); !bytes.Equal(hash[:], theirs.ChannelBinding()) {
		t.Error("handshake hashes differ")
	}
	k, err := ours.Split()
	if err != nil {
		t.Fatal(err)
	}
	theirSend, theirRecv := c1, c2 // c1: initiator to responder
	if weInitiate {
		theirSend, theirRecv = c2, c1
	}
	if k.Send != theirRecv.UnsafeKey() || k.Recv != theirSend.UnsafeKey() {
		t.Fatal("keys differ")
	}
	// A session frame is a Noise transport message with the header as its
	// associated data, so the other implementation opens and makes it too.
	s := NewSession(k, 5, 6)
	for i := range 3 {
		frame, err := s.Seal(nil, []byte("packet"), true)
		if err != nil {
			t.Fatal(err)
		}
		got, err := theirRecv.Decrypt(nil, frame[:16], frame[16:])
		if err != nil || string(got) != "packet" {
			t.Fatalf("frame %d: theirs: %q, %v", i, got, err)
		}
		header := []byte{6, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, byte(i)}
		sealed, err := theirSend.Encrypt(nil, header, []byte("answer"))
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _, err := s.Open(nil, append(header, sealed...)); err != nil || string(got) != "answer" {
			t.Fatalf("frame %d: ours: %q, %v", i, got, err)
		}
	}
}

// TestInteropNeedsPSK: the other implementation, given no PSK, silently runs KK
// instead of KKpsk0. Ours must not accept that.
func TestInteropNeedsPSK(t *testing.T) {
	t.Parallel()
	v := fixedVector(KKpsk0)
	_, resp := vectorSides(t, v)
	v.psk = nil
	msg, _, _, err := flynnSide(t, v, true).WriteMessage(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := resp.Read(nil, msg); !errors.Is(err, ErrAuth) {
		t.Errorf("a handshake without PSK: %v", err)
	}
}
