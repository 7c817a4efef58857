// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/seed5728abee/fathom/swarm/member"
)

// Append appends the encoding of a message to b. Lists above the bounds of this package are cut to them; byte strings
// are not, so a record, an offer or a payload that is too long makes a message that is refused.
func Append(b []byte, m Message) []byte {
	return m.append(append(b, byte(m.Kind())))
}

// Decode reads one message, which has to fill b. The payload of a Push and of Payloads shares memory with b; nothing
// else does. There is one encoding of each message: what Decode takes, [Append] gives back. The error wraps
// [ErrMessage], and [ErrKind] when the kind is not known.
func Decode(b []byte) (Message, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrMessage)
	}
	prototype := prototypes[Kind(b[0])]
	if prototype == nil {
		return nil, fmt.Errorf("%w: %w %d", ErrMessage, ErrKind, b[0])
	}
	d := decoder{rest: b[1:]}
	m := prototype.decode(&d)
	if len(d.rest) > 0 {
		d.fail("%d bytes too many", len(d.rest))
	}
	if d.err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMessage, Kind(b[0]), d.err)
	}
	return m, nil
}

// prototypes holds one value of each message. An array, as it is looked into for each message that comes in.
var prototypes = func() (p [256]Message) {
	for _, m := range []Message{
		Ping{},
		Pong{},
		State{},
		Notify{},
		Neighbours{},
		Lookup{},
		Found{},
		Step{},
		Closest{},
		Attach{},
		Attached{},
		Store{},
		Stored{},
		Fetch{},
		Records{},
		Push{},
		Pushed{},
		Want{},
		Payloads{},
		Try{},
		Tried{},
		Meet{},
		Met{},
		Refused{},
		Leave{},
		Have{},
		Offer{},
	} {
		p[m.Kind()] = m
	}
	return p
}()

// String returns the message's name in lower case.
func (k Kind) String() string {
	if m := prototypes[k]; m != nil {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

var kindNames = map[Kind]string{
	KindPing: "ping", KindPong: "pong", KindState: "state", KindNotify: "notify", KindNeighbours: "neighbours",
	KindLookup: "lookup", KindFound: "found", KindStep: "step", KindClosest: "closest", KindAttach: "attach",
	KindAttached: "attached", KindStore: "store", KindStored: "stored", KindFetch: "fetch", KindRecords: "records",
	KindPush: "push", KindPushed: "pushed", KindWant: "want", KindPayloads: "payloads", KindTry: "try",
	KindTried: "tried", KindMeet: "meet", KindMet: "met", KindRefused: "refused", KindLeave: "leave", KindHave: "have", KindOffer: "offer",
}

func (Ping) Kind() Kind       { return KindPing }
func (Pong) Kind() Kind       { return KindPong }
func (State) Kind() Kind      { return KindState }
func (Notify) Kind() Kind     { return KindNotify }
func (Neighbours) Kind() Kind { return KindNeighbours }
func (Lookup) Kind() Kind     { return KindLookup }
func (Found) Kind() Kind      { return KindFound }
func (Step) Kind() Kind       { return KindStep }
func (Closest) Kind() Kind    { return KindClosest }
func (Attach) Kind() Kind     { return KindAttach }
func (Attached) Kind() Kind   { return KindAttached }
func (Store) Kind() Kind      { return KindStore }
func (Stored) Kind() Kind     { return KindStored }
func (Fetch) Kind() Kind      { return KindFetch }
func (Records) Kind() Kind    { return KindRecords }
func (Push) Kind() Kind       { return KindPush }
func (Pushed) Kind() Kind     { return KindPushed }
func (Want) Kind() Kind       { return KindWant }
func (Payloads) Kind() Kind   { return KindPayloads }
func (Try) Kind() Kind        { return KindTry }
func (Tried) Kind() Kind      { return KindTried }
func (Meet) Kind() Kind       { return KindMeet }
func (Met) Kind() Kind        { return KindMet }
func (Refused) Kind() Kind    { return KindRefused }
func (Leave) Kind() Kind      { return KindLeave }
func (Have) Kind() Kind       { return KindHave }
func (Offer) Kind() Kind      { return KindOffer }

func (Ping) append(b []byte) []byte   { return b }
func (Pong) append(b []byte) []byte   { return b }
func (State) append(b []byte) []byte  { return b }
func (Stored) append(b []byte) []byte { return b }
func (Pushed) append(b []byte) []byte { return b }

func (Ping) decode(*decoder) Message   { return Ping{} }
func (Pong) decode(*decoder) Message   { return Pong{} }
func (State) decode(*decoder) Message  { return State{} }
func (Stored) decode(*decoder) Message { return Stored{} }
func (Pushed) decode(*decoder) Message { return Pushed{} }

func (m Notify) append(b []byte) []byte    { return AppendContact(b, m.From) }
func (Notify) decode(d *decoder) Message   { return Notify{From: d.contact(true)} }
func (m Attach) append(b []byte) []byte    { return AppendContact(b, m.From) }
func (Attach) decode(d *decoder) Message   { return Attach{From: d.contact(true)} }
func (m Attached) append(b []byte) []byte  { return appendContacts(b, m.Hosts) }
func (Attached) decode(d *decoder) Message { return Attached{Hosts: d.contacts(MaxNeighbours)} }
func (m Try) append(b []byte) []byte       { return AppendContact(b, m.From) }
func (Try) decode(d *decoder) Message      { return Try{From: d.contact(true)} }
func (m Store) append(b []byte) []byte     { return appendBytes(b, m.Record) }
func (Store) decode(d *decoder) Message    { return Store{Record: d.copied(MaxRecord)} }
func (m Fetch) append(b []byte) []byte     { return append(b, m.Key[:]...) }
func (Fetch) decode(d *decoder) Message    { return Fetch{Key: d.id()} }
func (m Met) append(b []byte) []byte       { return appendBytes(b, m.Offer) }
func (Met) decode(d *decoder) Message      { return Met{Offer: d.copied(MaxOffer)} }
func (m Want) append(b []byte) []byte      { return appendTags(b, m.Tags) }
func (Want) decode(d *decoder) Message     { return Want{Tags: d.tags()} }

func (m Neighbours) append(b []byte) []byte {
	return appendContacts(appendContacts(AppendContact(b, m.Self), m.Predecessors), m.Successors)
}

func (Neighbours) decode(d *decoder) Message {
	return Neighbours{Self: d.contact(true), Predecessors: d.contacts(MaxNeighbours), Successors: d.contacts(MaxNeighbours)}
}

func (m Leave) append(b []byte) []byte {
	return appendContacts(appendContacts(AppendContact(b, m.From), m.Predecessors), m.Successors)
}

func (Leave) decode(d *decoder) Message {
	return Leave{From: d.contact(true), Predecessors: d.contacts(MaxNeighbours), Successors: d.contacts(MaxNeighbours)}
}

func (m Lookup) append(b []byte) []byte  { return binary.AppendUvarint(append(b, m.Key[:]...), m.Hops) }
func (Lookup) decode(d *decoder) Message { return Lookup{Key: d.id(), Hops: d.number()} }

func (m Found) append(b []byte) []byte {
	b = AppendContact(append(b, m.Key[:]...), m.Owner)
	b = binary.AppendUvarint(appendContacts(b, first(m.Leaf, 1)), m.Hops)
	path := first(m.Path, MaxPath)
	b = binary.AppendUvarint(b, uint64(len(path)))
	for _, id := range path {
		b = append(b, id[:]...)
	}
	return b
}

func (Found) decode(d *decoder) Message {
	m := Found{Key: d.id(), Owner: d.contact(true), Leaf: d.contacts(1), Hops: d.number()}
	if n := d.length(MaxPath, len(member.ID{})); n > 0 {
		m.Path = make([]member.ID, n)
		for i := range m.Path {
			m.Path[i] = d.id()
		}
	}
	return m
}

func (m Step) append(b []byte) []byte  { return binary.AppendUvarint(append(b, m.Key[:]...), m.Count) }
func (Step) decode(d *decoder) Message { return Step{Key: d.id(), Count: d.number()} }

func (m Closest) append(b []byte) []byte {
	return appendContacts(appendContacts(appendBool(b, m.Owner), first(m.Leaf, 1)), m.Contacts)
}

func (Closest) decode(d *decoder) Message {
	return Closest{Owner: d.bool(), Leaf: d.contacts(1), Contacts: d.contacts(MaxNeighbours)}
}

func (m Records) append(b []byte) []byte {
	records := first(m.Records, MaxRecords)
	b = binary.AppendUvarint(b, uint64(len(records)))
	for _, r := range records {
		b = appendBytes(b, r)
	}
	return b
}

func (Records) decode(d *decoder) Message {
	var m Records
	for range d.length(MaxRecords, 1) {
		m.Records = append(m.Records, d.copied(MaxRecord))
	}
	return m
}

func (m Push) append(b []byte) []byte {
	b = binary.AppendUvarint(append(append(b, m.Tag[:]...), m.Origin[:]...), m.Sent)
	except := first(m.Except, MaxExcept)
	b = binary.AppendUvarint(b, uint64(len(except)))
	for _, id := range except {
		b = append(b, id[:]...)
	}
	b = append(appendBytes(appendBytes(b, m.Key), m.Signature), m.Limit[:]...)
	return appendBytes(binary.AppendUvarint(b, m.Hops), m.Payload)
}

func (Push) decode(d *decoder) Message {
	m := Push{Tag: d.tag(), Origin: d.id(), Sent: d.number()}
	if n := d.length(MaxExcept, len(member.ID{})); n > 0 {
		m.Except = make([]member.ID, n)
		for i := range m.Except {
			m.Except[i] = d.id()
		}
	}
	m.Key, m.Signature = d.copied(ed25519.PublicKeySize), d.copied(ed25519.SignatureSize)
	if len(m.Key) != 0 && len(m.Key) != ed25519.PublicKeySize || len(m.Signature) != 0 && len(m.Signature) != ed25519.SignatureSize {
		d.fail("key of %d bytes, signature of %d", len(m.Key), len(m.Signature))
	}
	m.Limit, m.Hops, m.Payload = d.id(), d.number(), d.bytes(MaxPayload)
	return m
}

func (m Offer) append(b []byte) []byte {
	b = append(append(b, m.Tag[:]...), m.Limit[:]...)
	return binary.AppendUvarint(binary.AppendUvarint(b, m.Hops), m.Size)
}

func (Offer) decode(d *decoder) Message {
	return Offer{Tag: d.tag(), Limit: d.id(), Hops: d.number(), Size: d.number()}
}

func (m Have) append(b []byte) []byte {
	news := first(m.News, MaxTags)
	b = binary.AppendUvarint(b, uint64(len(news)))
	for _, n := range news {
		b = binary.AppendUvarint(binary.AppendUvarint(append(b, n.Tag[:]...), n.Age), n.Size)
	}
	return b
}

func (Have) decode(d *decoder) Message {
	n := d.length(MaxTags, len(Tag{})+2)
	if n == 0 {
		return Have{}
	}
	m := Have{News: make([]News, n)}
	for i := range m.News {
		m.News[i] = News{Tag: d.tag(), Age: d.number(), Size: d.number()}
	}
	return m
}

func (m Payloads) append(b []byte) []byte {
	pushes := first(m.Pushes, MaxTags)
	b = binary.AppendUvarint(b, uint64(len(pushes)))
	for _, p := range pushes {
		b = p.append(b)
	}
	return b
}

func (Payloads) decode(d *decoder) Message {
	var m Payloads
	for range d.length(MaxTags, minPush) {
		m.Pushes = append(m.Pushes, Push{}.decode(d).(Push))
	}
	return m
}

func (m Tried) append(b []byte) []byte {
	reached := first(m.Reached, member.MaxAddrs)
	b = binary.AppendUvarint(b, uint64(len(reached)))
	for _, r := range reached {
		b = appendBool(b, r)
	}
	return b
}

func (Tried) decode(d *decoder) Message {
	var m Tried
	for range d.length(member.MaxAddrs, 1) {
		m.Reached = append(m.Reached, d.bool())
	}
	return m
}

func (m Meet) append(b []byte) []byte {
	return appendBytes(append(AppendContact(b, m.From), m.To[:]...), m.Offer)
}

func (Meet) decode(d *decoder) Message {
	return Meet{From: d.contact(true), To: d.id(), Offer: d.copied(MaxOffer)}
}

func (m Refused) append(b []byte) []byte {
	return appendBytes(append(b, byte(m.Code)), []byte(m.Reason[:min(len(m.Reason), maxReason)]))
}

func (Refused) decode(d *decoder) Message {
	return Refused{Code: RefusalCode(d.byte()), Reason: string(d.bytes(maxReason))}
}

const maxReason = 200

// first returns the list, or what of it is within a bound.
func first[T any](list []T, limit int) []T { return list[:min(len(list), limit)] }

// AppendContact appends the encoding of a contact, in the form that the package comment draws. What is above the
// bounds of package member is left out. A contact has to be well formed ([member.Contact.Verify]), or else nobody
// takes it.
func AppendContact(b []byte, c member.Contact) []byte {
	b = append(b, c.ID[:]...)
	flags := byte(c.Dialect) & flagDialect
	if c.Leaf {
		flags |= flagLeaf
	}
	if len(c.Key) == ed25519.PublicKeySize {
		flags |= flagKey
	}
	b = append(b, flags)
	if flags&flagKey != 0 {
		b = append(b, c.Key...)
	}
	addrs := first(c.Addrs, member.MaxAddrs)
	b = binary.AppendUvarint(b, uint64(len(addrs)))
	for _, a := range addrs {
		raw := a.Addr().Unmap().AsSlice()
		b = append(b, byte(len(raw)))
		b = binary.BigEndian.AppendUint16(append(b, raw...), a.Port())
	}
	hosts := first(c.Hosts, member.MaxHosts)
	b = binary.AppendUvarint(b, uint64(len(hosts)))
	for _, h := range hosts {
		h.Hosts = nil
		b = AppendContact(b, h)
	}
	return b
}

// DecodeContact reads one contact, which has to fill b. It checks the form, not that the ID is bound
// ([member.Contact.Verify]). The error wraps [ErrMessage].
func DecodeContact(b []byte) (member.Contact, error) {
	d := decoder{rest: b}
	c := d.contact(true)
	if len(d.rest) > 0 {
		d.fail("%d bytes too many", len(d.rest))
	}
	if d.err != nil {
		return member.Contact{}, fmt.Errorf("%w: contact: %w", ErrMessage, d.err)
	}
	return c, nil
}

const (
	flagDialect = 0x03
	flagLeaf    = 0x04
	flagKey     = 0x08
	flagsKnown  = flagDialect | flagLeaf | flagKey
)

// minPush is the size of the smallest Push, without its kind: tag, two IDs, two numbers and four empty lists.
const minPush = len(Tag{}) + 2*len(member.ID{}) + 6

// minContact is the size of the smallest contact: ID, flags and two empty lists.
const minContact = len(member.ID{}) + 3

func appendContacts(b []byte, list []member.Contact) []byte {
	list = first(list, MaxNeighbours)
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, c := range list {
		b = AppendContact(b, c)
	}
	return b
}

func appendTags(b []byte, tags []Tag) []byte {
	tags = first(tags, MaxTags)
	b = binary.AppendUvarint(b, uint64(len(tags)))
	for _, t := range tags {
		b = append(b, t[:]...)
	}
	return b
}

func appendBytes(b, s []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// A decoder reads fields from the front of rest. After the first failure all it returns is zero values.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
	}
	d.rest = nil
}

// take returns the next n bytes, which share memory with the input.
func (d *decoder) take(n int) []byte {
	if n > len(d.rest) {
		d.fail("too short: %d bytes of %d", len(d.rest), n)
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("boolean %d", v)
	}
	return v == 1
}

func (d *decoder) number() uint64 {
	v, n := binary.Uvarint(d.rest)
	// A last byte of zero adds nothing: the same number has a shorter form.
	if n <= 0 || n > 1 && d.rest[n-1] == 0 {
		d.fail("malformed number")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// length reads the length of a list of at most limit items of at least size bytes each.
func (d *decoder) length(limit, size int) int {
	n := d.number()
	if n > uint64(limit) || n*uint64(size) > uint64(len(d.rest)) {
		d.fail("%d items in %d bytes, of at most %d", n, len(d.rest), limit)
		return 0
	}
	return int(n)
}

func (d *decoder) bytes(limit int) []byte { return d.take(d.length(limit, 1)) }

func (d *decoder) copied(limit int) []byte { return append([]byte(nil), d.bytes(limit)...) }

func (d *decoder) id() (id member.ID) {
	copy(id[:], d.take(len(id)))
	return id
}

func (d *decoder) tag() (t Tag) {
	copy(t[:], d.take(len(t)))
	return t
}

func (d *decoder) tags() []Tag {
	n := d.length(MaxTags, len(Tag{}))
	if n == 0 {
		return nil
	}
	tags := make([]Tag, n)
	for i := range tags {
		tags[i] = d.tag()
	}
	return tags
}

func (d *decoder) contacts(limit int) []member.Contact {
	n := d.length(limit, minContact)
	if n == 0 {
		return nil
	}
	list := make([]member.Contact, n)
	for i := range list {
		list[i] = d.contact(true)
	}
	return list
}

func (d *decoder) contact(mayHaveHosts bool) member.Contact {
	c := member.Contact{ID: d.id()}
	flags := d.byte()
	if flags&^flagsKnown != 0 || flags&flagDialect > byte(member.Original) {
		d.fail("contact flags %#x", flags)
	}
	c.Dialect, c.Leaf = member.Dialect(flags&flagDialect), flags&flagLeaf != 0
	if flags&flagKey != 0 {
		c.Key = append(ed25519.PublicKey(nil), d.take(ed25519.PublicKeySize)...)
	}
	if n := d.length(member.MaxAddrs, 1+4+2); n > 0 {
		c.Addrs = make([]netip.AddrPort, n)
		for i := range c.Addrs {
			c.Addrs[i] = d.addr()
		}
	}
	limit := 0
	if mayHaveHosts {
		limit = member.MaxHosts
	}
	if n := d.length(limit, minContact); n > 0 {
		c.Hosts = make([]member.Contact, n)
		for i := range c.Hosts {
			c.Hosts[i] = d.contact(false)
		}
	}
	return c
}

func (d *decoder) addr() netip.AddrPort {
	addr, ok := netip.AddrFromSlice(d.take(int(d.byte())))
	port := d.take(2)
	if !ok || addr.Is4In6() || port == nil || binary.BigEndian.Uint16(port) == 0 {
		d.fail("malformed address")
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port))
}
