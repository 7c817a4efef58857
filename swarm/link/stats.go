// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package link

import "sync/atomic"

// Stats are counters of one session. Bytes are those on the wire, after the handshake.
type Stats struct {
	RecordsSent, RecordsReceived   uint64
	BytesSent, BytesReceived       uint64
	MessagesSent, MessagesReceived uint64
	RequestsSent, RequestsReceived uint64
	CastsSent, CastsReceived       uint64
	CastsDropped                   uint64 // by this side: on their way out and in
	StreamsOpened, StreamsAccepted uint64
	Rekeys                         uint64 // of both directions
}

type counters struct {
	recordsSent, recordsReceived   atomic.Uint64
	bytesSent, bytesReceived       atomic.Uint64
	messagesSent, messagesReceived atomic.Uint64
	requestsSent, requestsReceived atomic.Uint64
	castsSent, castsReceived       atomic.Uint64
	castsDropped                   atomic.Uint64
	streamsOpened, streamsAccepted atomic.Uint64
	rekeys                         atomic.Uint64
}

// Stats returns the counters as they are now.
func (s *Session) Stats() Stats {
	c := &s.counters
	return Stats{
		RecordsSent: c.recordsSent.Load(), RecordsReceived: c.recordsReceived.Load(),
		BytesSent: c.bytesSent.Load(), BytesReceived: c.bytesReceived.Load(),
		MessagesSent: c.messagesSent.Load(), MessagesReceived: c.messagesReceived.Load(),
		RequestsSent: c.requestsSent.Load(), RequestsReceived: c.requestsReceived.Load(),
		CastsSent: c.castsSent.Load(), CastsReceived: c.castsReceived.Load(), CastsDropped: c.castsDropped.Load(),
		StreamsOpened: c.streamsOpened.Load(), StreamsAccepted: c.streamsAccepted.Load(),
		Rekeys: c.rekeys.Load(),
	}
}
