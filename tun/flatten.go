package tun

// A Flattener brings packets down to what a device takes: it joins the parts of
// a superpacket, cuts it and completes checksums, each only where the device's
// offloads make it necessary. Devices use it in Write.
type Flattener struct {
	cut Cutter
	buf []byte
}

// Flatten calls emit for each packet that p comes to. It goes on after an error
// of emit and returns the first. Packets given to emit are borrowed until emit
// returns.
func (f *Flattener) Flatten(p Packet, o Offload, emit func(Packet) error) error {
	if !p.sound() {
		return ErrMalformed
	}
	if o.takes(&p) {
		return emit(p)
	}
	if len(p.Tail) > 0 {
		f.buf = append(f.buf[:0], p.Data...)
		for _, t := range p.Tail {
			f.buf = append(f.buf, t...)
		}
		p.Data, p.Tail = f.buf, nil
	}
	if err := f.cut.Reset(p, maxPacket); err != nil {
		return err
	}
	var first error
	for seg := f.cut.Next(); seg != nil; seg = f.cut.Next() {
		partial := f.cut.Partial()
		if partial && !o.VNetHdr {
			if err := CompleteChecksum(seg); err != nil {
				return err
			}
			partial = false
		}
		if err := emit(Packet{Data: seg, Partial: partial}); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// takes says whether a device with these offloads takes the packet as it is.
func (o Offload) takes(p *Packet) bool {
	switch {
	case p.SegmentSize > 0:
		tcp := len(p.Data) > 6 && p.Data[6] == protoTCP
		return o.VNetHdr && (tcp && o.TSO || !tcp && o.USO)
	case len(p.Tail) > 0:
		return false
	}
	return !p.Partial || o.VNetHdr
}

// sound says whether a packet is what its marks say, as far as a device cares.
func (p *Packet) sound() bool {
	if n := p.Len(); len(p.Data) == 0 || n > maxPacket {
		return false
	}
	if p.Partial || p.SegmentSize > 0 {
		_, _, ok := transport(p.Data)
		return ok && p.SegmentSize <= maxPacket
	}
	return true
}
