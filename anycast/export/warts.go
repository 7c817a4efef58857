// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strings"

	"github.com/seed5728abee/fathom/packet"
)

// Records of a warts file, from warts(5):
//
//	+----------------+----------------+---------------------------------+
//	|  magic 0x1205  |      type      |             length              |  and so many bytes
//	+----------------+----------------+---------------------------------+
//
// All numbers are in network byte order. Most of a record is optional parameters behind flags, see wartsParams.
const (
	wartsMagic = 0x1205

	wartsList       = 1
	wartsCycleStart = 2
	wartsCycleStop  = 4
	wartsTrace      = 6

	// Addresses are a length, a type and bytes; or length 0 and the 4-byte number of one seen before in the record.
	wartsAddr4 = 1
	wartsAddr6 = 2

	// Flags of a hop's answer, beside the parameters.
	wartsKernelTime = 0x01 // the arrival was timed by the kernel
	wartsReplyTTL   = 0x10
	wartsTCP        = 0x20
	wartsUDP        = 0x40

	wartsGapStop = 1 // the gap limit ends the trace
)

// warts writes scamper's binary format.
type warts struct {
	out    io.Writer
	buf    []byte
	params wartsParams
	addrs  map[netip.Addr]uint32 // numbers of the addresses in this record
}

// wartsParams is a set of optional parameters: a bit for each that is there, 7 in a byte from the lowest and the eighth if
// another byte follows; then, if there are any, the length of the parameters in 2 bytes, and the parameters.
type wartsParams struct {
	flags [4]byte
	last  int // byte of flags
	body  []byte
}

// add says that a parameter, numbered from 1, comes next. Numbers ascend.
func (p *wartsParams) add(flag int) {
	p.last = (flag - 1) / 7
	p.flags[p.last] |= 1 << ((flag - 1) % 7)
}

func (p *wartsParams) add8(flag int, v uint8) {
	p.add(flag)
	p.body = append(p.body, v)
}

func (p *wartsParams) add16(flag int, v uint16) {
	p.add(flag)
	p.body = binary.BigEndian.AppendUint16(p.body, v)
}

func (p *wartsParams) add32(flag int, v uint32) {
	p.add(flag)
	p.body = binary.BigEndian.AppendUint32(p.body, v)
}

func (p *wartsParams) addTime(flag int, t scamperTime) {
	p.add32(flag, uint32(t.Sec))
	p.body = binary.BigEndian.AppendUint32(p.body, uint32(t.Usec))
}

func (p *wartsParams) addString(flag int, s string) {
	p.add(flag)
	p.body = appendString(p.body, s)
}

// flush appends the set to b, and empties it.
func (p *wartsParams) flush(b []byte) ([]byte, error) {
	if len(p.body) > math.MaxUint16 {
		return b, fmt.Errorf("%w: %d bytes of parameters", ErrTooLarge, len(p.body))
	}
	for i := range p.last {
		p.flags[i] |= 0x80
	}
	b = append(b, p.flags[:p.last+1]...)
	if len(p.body) > 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.body)))
		b = append(b, p.body...)
	}
	*p = wartsParams{body: p.body[:0]}
	return b, nil
}

// appendString ends a string with a zero byte, so that it cannot have one inside.
func appendString(b []byte, s string) []byte {
	return append(append(b, strings.ReplaceAll(s, "\x00", "")...), 0)
}

// begin begins a record of so many bytes before the parameters.
func (w *warts) begin(kind uint16, fixed ...uint32) {
	w.buf = binary.BigEndian.AppendUint16(w.buf[:0], wartsMagic)
	w.buf = binary.BigEndian.AppendUint16(w.buf, kind)
	w.buf = binary.BigEndian.AppendUint32(w.buf, 0) // its length, see end
	for _, v := range fixed {
		w.buf = binary.BigEndian.AppendUint32(w.buf, v)
	}
}

// set appends the parameters.
func (w *warts) set() (err error) {
	w.buf, err = w.params.flush(w.buf)
	return err
}

// end writes the record.
func (w *warts) end() error {
	binary.BigEndian.PutUint32(w.buf[4:], uint32(len(w.buf)-8))
	_, err := w.out.Write(w.buf)
	return err
}

// list: id in the file, id of the user's, name; 1 description.
func (w *warts) list(l *scamperList) error {
	w.begin(wartsList, l.id, 0)
	w.buf = appendString(w.buf, l.name)
	if l.descr != "" {
		w.params.addString(1, l.descr)
	}
	if err := w.set(); err != nil {
		return err
	}
	return w.end()
}

// cycleStart: id in the file, list, id of the user's, start; 2 host.
func (w *warts) cycleStart(c *scamperCycle) error {
	w.begin(wartsCycleStart, c.id, c.list.id, 0, uint32(newScamperTime(c.start).Sec))
	w.params.addString(2, c.host)
	if err := w.set(); err != nil {
		return err
	}
	return w.end()
}

// cycleStop: id in the file, end; no parameters.
func (w *warts) cycleStop(c *scamperCycle) error {
	w.begin(wartsCycleStop, c.id, uint32(newScamperTime(c.stop).Sec))
	if err := w.set(); err != nil {
		return err
	}
	return w.end()
}

func (w *warts) trace(t *scamperTrace) error {
	if w.addrs == nil {
		w.addrs = make(map[netip.Addr]uint32)
	}
	clear(w.addrs)
	w.begin(wartsTrace)
	p := &w.params
	p.add32(1, t.cycle.list.id)
	p.add32(2, t.cycle.id)
	p.addTime(5, t.Start)
	p.add8(6, uint8(t.Stop))
	p.add8(7, t.StopData)
	p.add8(9, t.Attempts)
	p.add8(10, t.HopLimit)
	p.add8(11, uint8(t.Method))
	p.add16(12, t.ProbeSize)
	if t.SrcPort != nil {
		p.add16(13, *t.SrcPort)
		p.add16(14, *t.DstPort)
	}
	p.add8(15, t.FirstHop)
	p.add8(16, t.TOS)
	p.add8(17, t.Wait)
	p.add8(18, scamperLoops)
	p.add16(19, t.HopCount)
	p.add8(20, t.gapLimit)
	p.add8(21, wartsGapStop)
	p.add8(22, 0) // what happens after a loop
	p.add16(23, t.ProbeCount)
	p.add8(24, t.WaitProbe)
	p.add8(25, 0) // confidence, of another algorithm
	if t.Src.IsValid() {
		w.addAddr(26, t.Src)
	}
	if t.Dst.IsValid() {
		w.addAddr(27, t.Dst)
	}
	if err := w.set(); err != nil {
		return err
	}
	w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(len(t.Hops)))
	for i := range t.Hops {
		if err := w.hop(&t.Hops[i]); err != nil {
			return err
		}
	}
	w.buf = binary.BigEndian.AppendUint16(w.buf, 0) // no more parts
	return w.end()
}

func (w *warts) hop(h *scamperHop) error {
	p := &w.params
	p.add8(2, h.TTL)
	var flags uint8
	if h.ReplyTTL > 0 {
		p.add8(3, h.ReplyTTL)
		flags |= wartsReplyTTL
	}
	if h.RTT != nil {
		flags |= wartsKernelTime
	}
	if h.TCPFlags != nil {
		flags |= wartsTCP
	}
	if h.udp {
		flags |= wartsUDP
	}
	p.add8(4, flags)
	p.add8(5, h.ID-1)
	if h.RTT != nil {
		us := int64(*h.RTT) / 1000
		p.add32(6, uint32(min(us, math.MaxUint32)))
	}
	if h.ICMPType != nil {
		p.add16(7, uint16(*h.ICMPType)<<8|uint16(*h.ICMPCode))
	}
	p.add16(8, h.ProbeSize)
	p.add16(9, h.ReplySize)
	p.add16(10, h.ReplyID)
	p.add8(11, h.ReplyTOS)
	if h.MTU != nil {
		p.add16(12, *h.MTU)
	}
	if h.QuotedTTL != nil && *h.QuotedTTL != 1 {
		p.add8(14, *h.QuotedTTL)
	}
	if h.TCPFlags != nil {
		p.add8(15, *h.TCPFlags)
	}
	if h.QuotedTOS != nil {
		p.add8(16, *h.QuotedTOS)
	}
	if len(h.mpls) > 0 {
		if err := w.addLabels(17, h.mpls); err != nil {
			return err
		}
	}
	w.addAddr(18, h.Addr)
	if h.Sent != nil {
		p.addTime(19, *h.Sent)
	}
	return w.set()
}

// addAddr adds an address, or the number that it has in this record.
func (w *warts) addAddr(flag int, a netip.Addr) {
	p := &w.params
	p.add(flag)
	if n, ok := w.addrs[a]; ok {
		p.body = append(p.body, 0)
		p.body = binary.BigEndian.AppendUint32(p.body, n)
		return
	}
	w.addrs[a] = uint32(len(w.addrs))
	kind := byte(wartsAddr4)
	if a.Is6() {
		kind = wartsAddr6
	}
	p.body = append(p.body, byte(a.BitLen()/8), kind)
	p.body = append(p.body, a.AsSlice()...)
}

// addLabels adds an MPLS label stack, as the extension object that it came in: length of all objects; length, class and type of
// this one, and its data (RFC 4950).
func (w *warts) addLabels(flag int, stack []packet.Label) (err error) {
	n := 4 * len(stack)
	p := &w.params
	p.add16(flag, uint16(4+n)) // what does not fit is seen by flush
	p.body = binary.BigEndian.AppendUint16(p.body, uint16(n))
	p.body = append(p.body, packet.ExtensionMPLS, 1)
	p.body, err = packet.AppendLabelStack(p.body, stack)
	return err
}
