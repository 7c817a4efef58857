// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
)

// Events are cut so that they stay far below gRPC's limit of 4 MiB, whatever results weigh.
const (
	maxFoundResults = 1024
	maxFoundBytes   = 256 << 10
)

// progressEvery is how often those who follow are told how far a measurement is.
const progressEvery = 250 * time.Millisecond

// measureService is what people's programs talk to.
type measureService struct {
	measurepb.UnimplementedMeasureServer
	*Controller
}

// Start reads the definition and the targets, begins, and tells what is found.
func (s *measureService) Start(stream measurepb.Measure_StartServer) error {
	ctx := stream.Context()
	who := callerOf(ctx)
	id, attached, err := s.start(ctx, who, stream.Recv)
	s.audit(who, "start", id, err)
	if err != nil {
		return statusOf(err)
	}
	err = s.follow(ctx, id, stream.Send)
	if attached && ctx.Err() != nil {
		s.cancelRun(id, errLeft)
	}
	return statusOf(err)
}

// start begins a measurement with the definition and targets that recv gives, and tells its id.
func (s *measureService) start(ctx context.Context, who caller, recv func() (*measurepb.StartRequest, error)) (id string, attached bool, err error) {
	first, definition, err := readDefinition(recv)
	if err != nil {
		return "", false, err
	}
	definition.Feed = false
	if err := s.admitRequest(who); err != nil {
		return "", false, err
	}
	list := &targetList{c: s.Controller}
	for m := first; ; {
		if err := list.add(m); err != nil {
			return "", false, err
		}
		if m, err = recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", false, err
		}
	}
	targets, err := list.resolve(ctx)
	if err != nil {
		return "", false, err
	}
	id, err = s.begin(ctx, who, definition, targets, nil)
	return id, first.GetAttached(), err
}

// readDefinition reads the first message of a call.
func readDefinition(recv func() (*measurepb.StartRequest, error)) (*measurepb.StartRequest, anycast.Definition, error) {
	first, err := recv()
	if err != nil {
		return nil, anycast.Definition{}, fmt.Errorf("%w: no definition came: %w", errInvalid, err)
	}
	if first.GetDefinition() == nil {
		return nil, anycast.Definition{}, fmt.Errorf("%w: the first message has no definition", errInvalid)
	}
	definition, err := measurepb.ToDefinition(first.GetDefinition())
	if err != nil {
		return nil, definition, fmt.Errorf("%w: definition: %w", errInvalid, err)
	}
	return first, definition, nil
}

// Follow tells what a measurement found so far, and goes on until it ends.
func (s *measureService) Follow(req *measurepb.FollowRequest, stream measurepb.Measure_FollowServer) error {
	if err := s.call(stream.Context(), "follow", req.GetId()); err != nil {
		return statusOf(err)
	}
	return statusOf(s.follow(stream.Context(), req.GetId(), stream.Send))
}

// follow tells all about a measurement: its state, everything it found, in order, each once, and its end.
func (c *Controller) follow(ctx context.Context, id string, send func(*measurepb.Event) error) error {
	c.mu.Lock()
	r := c.runs[id]
	c.mu.Unlock()
	if r == nil {
		return c.followStored(ctx, id, send)
	}
	if err := send(measurementEvent(r.snapshot())); err != nil {
		return err
	}
	pos := 0
	var state anycast.State
	var told time.Time
	later := time.NewTimer(progressEvery)
	defer later.Stop()
	for {
		v := r.since(pos)
		switch {
		case v.older:
			n, err := c.sendStored(ctx, id, pos, v.stored, send)
			if err != nil {
				return err
			}
			if pos += n; n == 0 {
				return fmt.Errorf("%w: it has fewer than the %d results given to it", errStore, v.stored)
			}
			continue
		case len(v.results) > 0:
			if err := sendResults(id, v.results, send); err != nil {
				return err
			}
			pos += len(v.results)
			continue
		case v.over:
			return send(measurementEvent(v.m))
		}
		if now := time.Now(); v.m.State != state && state != 0 {
			if err := send(measurementEvent(v.m)); err != nil {
				return err
			}
		} else if now.Sub(told) >= progressEvery {
			told = now
			if err := send(&measurepb.Event{Event: &measurepb.Event_Progress{Progress: measurepb.FromProgress(v.m.Progress)}}); err != nil {
				return err
			}
		}
		state = v.m.State
		later.Reset(progressEvery)
		select {
		case <-v.changed:
		case <-later.C:
			// Look again only for progress that was left out.
			select {
			case <-v.changed:
			case <-ctx.Done():
				return ctx.Err()
			case <-c.stopping:
				return errStopping
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-c.stopping:
			return errStopping
		}
	}
}

func measurementEvent(m anycast.Measurement) *measurepb.Event {
	return &measurepb.Event{Event: &measurepb.Event_Measurement{Measurement: measurepb.FromMeasurement(&m)}}
}

// followStored is follow for a measurement that is over.
func (c *Controller) followStored(ctx context.Context, id string, send func(*measurepb.Event) error) error {
	m, err := c.measurement(ctx, id)
	if err != nil {
		return err
	}
	if err := send(measurementEvent(m)); err != nil {
		return err
	}
	if _, err := c.sendStored(ctx, id, 0, 0, send); err != nil {
		return err
	}
	return send(measurementEvent(m))
}

// sendStored sends the results numbered from pos on, up to but without end, that the store has; end 0 means all. It
// tells how many that were.
func (c *Controller) sendStored(ctx context.Context, id string, pos, end int, send func(*measurepb.Event) error) (int, error) {
	if err := c.store.Flush(ctx); err != nil {
		return 0, fmt.Errorf("%w: %w", errStore, err)
	}
	return c.sendQuery(ctx, anycast.Query{Measurement: id, Limit: end}, pos, send)
}

// sendQuery sends what a query finds, without the first skip results.
func (c *Controller) sendQuery(ctx context.Context, q anycast.Query, skip int, send func(*measurepb.Event) error) (sent int, err error) {
	var batch foundBatch
	var sendErr error
	i := 0
	err = c.store.Results(ctx, q, func(id string, r anycast.Result) bool {
		if i++; i <= skip {
			return true
		}
		sent++
		sendErr = batch.add(id, r, send)
		return sendErr == nil
	})
	if sendErr != nil {
		return sent, sendErr
	}
	if errors.Is(err, anycast.ErrNoMeasurement) {
		return sent, err // the store is right
	}
	if err != nil {
		return sent, fmt.Errorf("%w: %w", errStore, err)
	}
	return sent, batch.flush(send)
}

func sendResults(id string, results []anycast.Result, send func(*measurepb.Event) error) error {
	var batch foundBatch
	for _, r := range results {
		if err := batch.add(id, r, send); err != nil {
			return err
		}
	}
	return batch.flush(send)
}

// foundBatch gathers results of one measurement into events.
type foundBatch struct {
	found *measurepb.Found
	bytes int
}

func (b *foundBatch) add(id string, r anycast.Result, send func(*measurepb.Event) error) error {
	p := measurepb.FromResult(r)
	size := proto.Size(p)
	if b.found != nil && (b.found.GetMeasurement() != id || len(b.found.GetResults()) >= maxFoundResults || b.bytes+size > maxFoundBytes) {
		if err := b.flush(send); err != nil {
			return err
		}
	}
	if b.found == nil {
		b.found = &measurepb.Found{Measurement: id}
	}
	b.found.Results = append(b.found.Results, p)
	b.bytes += size
	return nil
}

func (b *foundBatch) flush(send func(*measurepb.Event) error) error {
	if b.found == nil {
		return nil
	}
	event := &measurepb.Event{Event: &measurepb.Event_Found{Found: b.found}}
	b.found, b.bytes = nil, 0
	return send(event)
}

// Cancel ends a measurement, or a schedule and the run it is in.
func (s *measureService) Cancel(ctx context.Context, req *measurepb.CancelRequest) (*measurepb.CancelResponse, error) {
	if err := s.call(ctx, "cancel", req.GetId()); err != nil {
		return nil, statusOf(err)
	}
	return &measurepb.CancelResponse{}, statusOf(s.cancelMeasurement(ctx, req.GetId()))
}

// List gives the measurements that match, newest first.
func (s *measureService) List(ctx context.Context, req *measurepb.ListRequest) (*measurepb.ListResponse, error) {
	if err := s.call(ctx, "list", req.GetId()); err != nil {
		return nil, statusOf(err)
	}
	q, err := measurepb.ToQuery(req)
	if err != nil {
		return nil, statusOf(fmt.Errorf("%w: %w", errInvalid, err))
	}
	list, err := s.list(ctx, q)
	if err != nil {
		return nil, statusOf(err)
	}
	resp := &measurepb.ListResponse{}
	size := 0
	for i := range list {
		m := measurepb.FromMeasurement(&list[i])
		if size += proto.Size(m); size > maxListBytes {
			break // the older ones can be asked for with an end
		}
		resp.Measurements = append(resp.Measurements, m)
	}
	return resp, nil
}

// maxListBytes keeps a list below gRPC's limit of 4 MiB.
const maxListBytes = 3 << 20

// Results gives stored results.
func (s *measureService) Results(req *measurepb.ListRequest, stream measurepb.Measure_ResultsServer) error {
	ctx := stream.Context()
	if err := s.call(ctx, "results", req.GetId()); err != nil {
		return statusOf(err)
	}
	q, err := measurepb.ToQuery(req)
	if err != nil {
		return statusOf(fmt.Errorf("%w: %w", errInvalid, err))
	}
	if err := s.store.Flush(ctx); err != nil {
		return statusOf(fmt.Errorf("%w: %w", errStore, err))
	}
	_, err = s.sendQuery(ctx, q, 0, stream.Send)
	return statusOf(err)
}

// Delete forgets a measurement that is over, and its results.
func (s *measureService) Delete(ctx context.Context, req *measurepb.DeleteRequest) (*measurepb.DeleteResponse, error) {
	if err := s.call(ctx, "delete", req.GetId()); err != nil {
		return nil, statusOf(err)
	}
	return &measurepb.DeleteResponse{}, statusOf(s.deleteMeasurement(ctx, req.GetId()))
}

// Sites gives the connected sites.
func (s *measureService) Sites(ctx context.Context, _ *measurepb.SitesRequest) (*measurepb.SitesResponse, error) {
	if err := s.call(ctx, "sites", ""); err != nil {
		return nil, statusOf(err)
	}
	resp := &measurepb.SitesResponse{}
	for _, site := range s.fleet.Sites() {
		resp.Sites = append(resp.Sites, measurepb.FromSite(&site))
	}
	return resp, nil
}
