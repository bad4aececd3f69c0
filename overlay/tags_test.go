package overlay

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pilotnet/pilot/crypto"
)

// testKnock makes a pair state of ours, and the other side of it.
func testKnock(t testing.TB, n byte) (ours *knock, theirs *crypto.Pair) {
	t.Helper()
	a, b := crypto.NewPrivateKey([32]byte{1}), crypto.NewPrivateKey([32]byte{2, n})
	da, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	db, err := crypto.GenerateDH()
	if err != nil {
		t.Fatal(err)
	}
	secret := crypto.PairSecret{3, n}
	pair := func(l, r crypto.PrivateKey, la, ra byte, s, rs crypto.DHPrivate) *crypto.Pair {
		p, err := crypto.NewPair(crypto.PairConfig{
			Local: l.Public(), Remote: r.Public(), LocalAddr: [6]byte{5: la}, RemoteAddr: [6]byte{5: ra},
			Static: s, RemoteStatic: rs.Public(), Secret: secret,
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ours = &knock{peer: b.Public(), slot: [32]byte{n}, pair: pair(a, b, 1, 2+n, da, db)}
	return ours, pair(b, a, 2+n, 1, db, da)
}

// The table holds exactly the tags of 12 epochs around its own, however the
// epoch moves, from the first one of 1970 on and also back.
func TestTagTable(t *testing.T) {
	table := newTagTable()
	r := rand.New(rand.NewPCG(1, 1))
	var in []*knock
	var pairs []*crypto.Pair
	for i := range byte(6) {
		k, p := testKnock(t, i)
		in, pairs = append(in, k), append(pairs, p)
	}
	known := map[*knock]bool{}
	for _, epoch := range []uint64{0, 0, 3, 11, 12, 13, 20, 5, 0, 100, 113, 112, 250_000, 250_001, 250_030, 249_990} {
		table.advance(epoch)
		k := in[r.IntN(len(in))]
		if known[k] {
			table.remove(k)
		} else {
			table.add(k)
		}
		known[k] = !known[k]
		entries := 0
		for i, p := range pairs {
			for d := -30; d <= 30; d++ {
				e := int64(epoch) + int64(d)
				if e < 0 {
					continue
				}
				got := slices.Contains(table.find(p.OutboundTag(uint64(e))), in[i])
				want := known[in[i]] && d >= -crypto.EpochWindow && d <= crypto.EpochWindow
				if got != want {
					t.Errorf("epoch %d, tag of %d: found %v, want %v", epoch, e, got, want)
				}
				if want {
					entries++
				}
			}
		}
		if len(table.slots) != entries {
			t.Errorf("epoch %d: %d tags in the table, want %d", epoch, len(table.slots), entries)
		}
	}
}

// A tag that several peers share is tried against each, at most four, and
// stays while one of them has it.
func TestTagShared(t *testing.T) {
	table := newTagTable()
	table.advance(1000)
	first, _ := testKnock(t, 1)
	tag := first.pair.InboundTag(1000)
	var all []*knock
	for range 6 {
		k := &knock{pair: first.pair} // the same tags by construction
		all = append(all, k)
		table.add(k)
	}
	held := table.find(tag)
	if len(held) != maxShared {
		t.Fatalf("%d share a tag, want %d", len(held), maxShared)
	}
	copied := slices.Clone(held)
	table.remove(all[1])
	if got := table.find(tag); len(got) != maxShared-1 || slices.Contains(got, all[1]) {
		t.Errorf("after a removal: %d", len(got))
	}
	if !slices.Equal(held, copied) {
		t.Error("a reader's slice changed under it")
	}
	for _, k := range all {
		table.remove(k)
	}
	if len(table.slots) != 0 || len(table.all) != 0 {
		t.Errorf("%d tags, %d pair states left", len(table.slots), len(table.all))
	}
}

// The filter grows with the table, and loses what left it.
func TestTagFilter(t *testing.T) {
	table := newTagTable()
	table.advance(1000)
	var all []*knock
	for i := range byte(100) {
		k, _ := testKnock(t, i)
		table.add(k)
		all = append(all, k)
	}
	set := func() (n int) {
		for i := range *table.bits.Load() {
			n += bits.OnesCount64((*table.bits.Load())[i].Load())
		}
		return n
	}
	for _, k := range all {
		if !slices.Contains(table.find(k.pair.InboundTag(1000)), k) {
			t.Fatal("a tag is not found")
		}
	}
	if n, size := set(), len(*table.bits.Load())*64; n < 2400 || n > 2500 || n*tagBitsFree > size {
		t.Errorf("%d of %d bits for 2500 tags", n, size)
	}
	for _, k := range all[1:] {
		table.remove(k)
	}
	table.advance(1001)
	if n := set(); n != 25 {
		t.Errorf("%d bits for 25 tags", n)
	}
}
