// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package volta

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	"github.com/seed5728abee/fathom/anycast/volta/anycastpb"
)

// Codec is gRPC's own, but lets no peer end its stream by a Message that is no protobuf at all: that
// arrives as an empty one, which Decode refuses like any other malformed message. Everything else is as
// ever.
//
//	grpc.NewServer(grpc.ForceServerCodecV2(volta.Codec()))
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(proto.Name)} }

type codec struct{ encoding.CodecV2 }

// Unmarshal decodes into v.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	if m, ok := v.(*anycastpb.Message); ok && err != nil {
		m.Reset()
		return nil
	}
	return err
}
