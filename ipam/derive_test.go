package ipam

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"testing"

	"github.com/pilotnet/pilot/crypto"
)

// The golden identity fixes every parameter of the derivation. The tag of its
// counter begins 215253ca 00, which the reference implementation of Argon2
// (argon2 -id -t 1 -k 8192 -p 1 -l 32) gives as well for the input
// SHA-256(key || 0000000000000023) = 44ac9e1a...8c784f.
const (
	goldenKey         = "28fe9a1db3a0adac999adf383df658cb562fdbcca36db9f9e75de87c66666e91"
	goldenCounter     = 35
	goldenNode        = 0x215253ca
	goldenAddr        = "0:0000.2152.53ca"
	goldenULA         = "fd50:494c:4f54::2152:53ca"
	goldenFingerprint = "n7atyaggjytomvvrb7lopbqzie"
	goldenFile        = "pilot-identity-v1\n" +
		"seed pfg7besteof7dkjurkan3m5nnwvovx26niq7sk4amsnba3coo2uq\n" +
		"counter 35\n" +
		"address 0:0000.2152.53ca\n"
)

func testKey(name string) crypto.PrivateKey {
	return crypto.NewPrivateKey(sha256.Sum256([]byte("pilot test identity " + name)))
}

func TestGoldenIdentity(t *testing.T) {
	t.Parallel()
	k := testKey("golden")
	public := k.Public()
	if got := hex.EncodeToString(public[:]); got != goldenKey {
		t.Fatalf("key = %s, want %s", got, goldenKey)
	}
	node, err := NodeID(public, goldenCounter)
	if err != nil || node != goldenNode {
		t.Fatalf("NodeID = %#x, %v, want %#x", node, err, goldenNode)
	}
	id := Identity{Key: k, Counter: goldenCounter, Node: node}
	if got := id.Addr().String(); got != goldenAddr {
		t.Errorf("address = %s, want %s", got, goldenAddr)
	}
	if got := id.Addr().ULA().String(); got != goldenULA {
		t.Errorf("ULA = %s, want %s", got, goldenULA)
	}
	if got := public.Fingerprint().String(); got != goldenFingerprint {
		t.Errorf("fingerprint = %s, want %s", got, goldenFingerprint)
	}
	if text, err := id.MarshalText(); err != nil || string(text) != goldenFile {
		t.Errorf("identity file = %q, %v, want %q", text, err, goldenFile)
	}
	if err := id.Verify(); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

func TestNodeIDRefusesOtherCounters(t *testing.T) {
	t.Parallel()
	for _, counter := range []uint64{0, goldenCounter - 1, goldenCounter + 1, goldenCounter << 32, math.MaxUint64} {
		if node, err := NodeID(testKey("golden").Public(), counter); !errors.Is(err, ErrNotDerived) {
			t.Errorf("NodeID(%d) = %#x, %v, want ErrNotDerived", counter, node, err)
		}
	}
}

func TestReservedNodes(t *testing.T) {
	t.Parallel()
	for node, want := range map[uint32]bool{0: true, 1: true, 255: true, 256: false, math.MaxUint32 - 1: false, math.MaxUint32: true} {
		if got := reservedNode(node); got != want {
			t.Errorf("reservedNode(%#x) = %v, want %v", node, got, want)
		}
		if got := (Addr{Node: node}).Valid(); got == want {
			t.Errorf("Addr of node %#x: Valid = %v", node, got)
		}
	}
}

// TestDeriveTakesSmallest derives the golden identity again: several workers
// must not make the result depend on who is first.
func TestDeriveTakesSmallest(t *testing.T) {
	t.Parallel()
	counter, err := Derive(t.Context(), testKey("golden").Public(), nil)
	if err != nil || counter != goldenCounter {
		t.Fatalf("Derive = %d, %v, want %d", counter, err, goldenCounter)
	}
}

// TestDeriveNew makes an identity that nobody has made before.
func TestDeriveNew(t *testing.T) {
	t.Parallel()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	id, err := NewIdentity(t.Context(), key, func(tried int) {
		if tried != last+1 {
			t.Errorf("progress went from %d to %d", last, tried)
		}
		last = tried
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Verify(); err != nil {
		t.Error(err)
	}
	if uint64(last) <= id.Counter {
		t.Errorf("counter %d after %d attempts", id.Counter, last)
	}
	t.Logf("counter %d after %d attempts", id.Counter, last)
}

func TestDeriveStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	tried := 0
	_, err := Derive(ctx, testKey("carol").Public(), func(n int) {
		tried = n
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("err = %v, want context.Canceled", err)
	}
	if tried > maxWorkers {
		t.Errorf("%d attempts after the first was cancelled", tried)
	}
}

func BenchmarkNodeID(b *testing.B) {
	k := testKey("golden").Public()
	for b.Loop() {
		if _, err := NodeID(k, goldenCounter); err != nil {
			b.Fatal(err)
		}
	}
}
