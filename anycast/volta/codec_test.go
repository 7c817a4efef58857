// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta_test

import (
	"context"
	"errors"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/seed5728abee/fathom/anycast/volta"
	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// rawCodec sends any bytes as a message.
type rawCodec struct{ encoding.CodecV2 }

func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if b, ok := v.([]byte); ok {
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// listener passes on what agents say, as Decode has it.
type listener struct {
	anycastpb.UnimplementedAnycastServiceServer
	heard chan error
}

func (l *listener) ControlStream(s grpc.BidiStreamingServer[anycastpb.Message, anycastpb.Message]) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		_, _, err = volta.Decode(m)
		l.heard <- err
	}
}

// TestCodec: noise on a stream is a malformed message; the agent behind it is still heard. A client's
// request that is noise is refused as ever.
func TestCodec(t *testing.T) {
	l := &listener{heard: make(chan error, 2)}
	server := grpc.NewServer(grpc.ForceServerCodecV2(volta.Codec()))
	anycastpb.RegisterAnycastServiceServer(server, l)
	pipe := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- server.Serve(pipe) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:agent",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return pipe.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2("proto")})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		anycastpb.AnycastService_ControlStream_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{{0xff, 0xff, 0xff}, unhex(t, vectors(t)[0].hex)} {
		if err := stream.SendMsg(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-l.heard; !errors.Is(err, volta.ErrMalformed) {
		t.Errorf("noise: %v", err)
	}
	if err := <-l.heard; err != nil {
		t.Errorf("the message behind it: %v", err)
	}
	err = conn.Invoke(t.Context(), anycastpb.AnycastService_UserRequest_FullMethodName, []byte{0xff}, &anycastpb.Response{})
	if status.Code(err) != codes.Internal {
		t.Errorf("a request that is noise: %v", err)
	}
}

func BenchmarkDecodeReply(b *testing.B) {
	for _, v := range vectors(b) {
		if v.message.Kind() != "REPLY" {
			continue
		}
		b.Run(v.name+" "+v.dialect.String(), func(b *testing.B) {
			raw := unhex(b, v.hex)
			b.ReportAllocs()
			for b.Loop() {
				msg, _, err := decode(b, raw)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := volta.ParseAnswer(msg.(volta.Reply).Packet); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
