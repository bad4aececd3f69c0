package ipam

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"

	"golang.org/x/crypto/argon2"

	"github.com/pilotnet/pilot/crypto"
)

// The parameters of the derivation. They are part of every identity: changing
// one changes the address of every agent.
const (
	nodeSalt    = "pilot node v1"
	nodePasses  = 1
	nodeMemory  = 8 << 10 // KiB
	nodeThreads = 1
	nodeTagSize = 32

	// maxWorkers bounds the memory of a derivation to 128 MiB on machines with
	// many cores.
	maxWorkers = 16
)

// ErrNotDerived means that a node ID does not follow from the key and the
// counter: the counter misses the condition, or gives a reserved or another ID.
var ErrNotDerived = errors.New("ipam: node ID does not follow from key and counter")

func reservedNode(node uint32) bool { return node < 256 || node == math.MaxUint32 }

// NodeID computes the node ID of key with counter: one Argon2id, about 10 ms
// and 8 MiB. It returns ErrNotDerived if the counter is not valid for the key.
func NodeID(key crypto.PublicKey, counter uint64) (uint32, error) {
	input := sha256.Sum256(binary.BigEndian.AppendUint64(key[:], counter))
	h := argon2.IDKey(input[:], []byte(nodeSalt), nodePasses, nodeMemory, nodeThreads, nodeTagSize)
	node := binary.BigEndian.Uint32(h)
	if h[4] != 0 || reservedNode(node) {
		return 0, ErrNotDerived
	}
	return node, nil
}

// Derive finds the smallest counter that is valid for key. It takes 256
// attempts on average, geometrically distributed (one key in a hundred takes
// 1,200), spread over the cores: a second or two of all of them. progress, if
// not nil, is called after each attempt with the number made so far; calls do
// not overlap. The result is the same whatever the number of cores.
func Derive(ctx context.Context, key crypto.PublicKey, progress func(tried int)) (counter uint64, err error) {
	var (
		mu     sync.Mutex
		next   uint64
		tried  int
		best   uint64 = math.MaxUint64
		worker sync.WaitGroup
	)
	// A counter below best may still be with another worker, so each worker
	// goes on until the next counter is no better than the best.
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if ctx.Err() != nil || next >= best {
			return 0, false
		}
		next++
		return next - 1, true
	}
	record := func(c uint64, fits bool) {
		mu.Lock()
		defer mu.Unlock()
		if fits {
			best = min(best, c)
		}
		tried++
		if progress != nil {
			progress(tried)
		}
	}
	for range min(runtime.GOMAXPROCS(0), maxWorkers) {
		worker.Go(func() {
			for c, ok := take(); ok; c, ok = take() {
				_, err := NodeID(key, c)
				record(c, err == nil)
			}
		})
	}
	worker.Wait()
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("ipam: derive address: %w", err)
	}
	return best, nil
}

// checkNode returns ErrNotDerived unless addr is the address of key with counter.
func checkNode(addr Addr, key crypto.PublicKey, counter uint64) error {
	node, err := NodeID(key, counter)
	if err != nil {
		return err
	}
	if addr != (Addr{Node: node}) {
		return ErrNotDerived
	}
	return nil
}
