// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package measurepb_test

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/anycast/measurepb"
	"github.com/seed5728abee/fathom/probe"
	"github.com/seed5728abee/fathom/probe/stateless"
)

// filler sets every field of a value to something that is not zero, so that a field
// that a conversion forgets shows.
type filler struct{ *rand.Rand }

func (f filler) fill(v reflect.Value) {
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + f.IntN(250))})))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(f.IntN(250)), 0}), 24)))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000, 1+f.Int64N(1e9)).UTC()))
		return
	case stateless.Kind:
		kinds := []stateless.Kind{stateless.ICMP, stateless.UDP, stateless.TCP, stateless.DNS, stateless.CHAOS}
		v.Set(reflect.ValueOf(kinds[f.IntN(len(kinds))]))
		return
	case probe.Status:
		v.Set(reflect.ValueOf(probe.Replied + probe.Status(f.IntN(8))))
		return
	case anycast.State:
		v.Set(reflect.ValueOf(anycast.Waiting + anycast.State(f.IntN(6))))
		return
	case anycast.Method:
		v.Set(reflect.ValueOf([]anycast.Method{anycast.MethodParis, anycast.MethodClassic, anycast.MethodMultipath}[f.IntN(3)]))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Struct:
		for _, field := range v.Fields() {
			f.fill(field)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			f.fill(v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		f.fill(value)
		v.SetMapIndex(reflect.ValueOf("fra1"), value)
	case reflect.String:
		v.SetString("fra" + string(rune('a'+f.IntN(26))))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(0.5 + f.Float64())
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + f.Uint64N(200))
	default:
		v.SetInt(1 + f.Int64N(200))
	}
}

var addresses = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// over gives what a message is after a way over the wire.
func over[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	back := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(data, back); err != nil {
		t.Fatal(err)
	}
	return back.(M)
}

func TestResultsSurvive(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(1, 2))}
	for _, r := range []anycast.Result{
		&anycast.TraceResult{}, &anycast.Catch{}, &anycast.LatencyResult{}, &anycast.FlipResult{}, &anycast.Move{},
		&anycast.WatchResult{}, &anycast.Summary{}, &anycast.Alarm{}, &anycast.TextResult{},
	} {
		f.fill(reflect.ValueOf(r).Elem())
		got, err := measurepb.ToResult(over(t, measurepb.FromResult(r)))
		if err != nil {
			t.Errorf("%T: %v", r, err)
		} else if diff := cmp.Diff(r, got, addresses); diff != "" {
			t.Errorf("%T changed on its way (-before +after):\n%s", r, diff)
		}
	}
}

func TestMeasurementsSurvive(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(3, 4))}
	for _, kind := range []anycast.ProgramKind{
		anycast.KindTrace, anycast.KindCatchment, anycast.KindLatency, anycast.KindFlipping, anycast.KindWatch, anycast.KindVolta,
	} {
		var m anycast.Measurement
		f.fill(reflect.ValueOf(&m).Elem())
		d := &m.Definition
		d.Program = kind
		// Only the options of the program itself are on the wire.
		if kind != anycast.KindTrace {
			d.Trace = nil
		}
		if kind != anycast.KindFlipping {
			d.Flipping = nil
		}
		if kind != anycast.KindWatch {
			d.Watch = nil
		}
		if kind != anycast.KindVolta {
			d.Command = ""
		}
		got, err := measurepb.ToMeasurement(over(t, measurepb.FromMeasurement(&m)))
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		} else if diff := cmp.Diff(m, got, addresses); diff != "" {
			t.Errorf("a %s changed on its way (-before +after):\n%s", kind, diff)
		}
	}
}

func TestQueriesAndSitesSurvive(t *testing.T) {
	f := filler{rand.New(rand.NewPCG(5, 6))}
	var q anycast.Query
	f.fill(reflect.ValueOf(&q).Elem())
	if got, err := measurepb.ToQuery(over(t, measurepb.FromQuery(q))); err != nil || got != q {
		t.Errorf("got %+v, %v, want %+v", got, err, q)
	}
	if got, err := measurepb.ToQuery(over(t, measurepb.FromQuery(anycast.Query{}))); err != nil || got != (anycast.Query{}) {
		t.Errorf("got %+v, %v, want the zero value", got, err)
	}
	var s anycast.Site
	f.fill(reflect.ValueOf(&s).Elem())
	got, err := measurepb.ToSite(over(t, measurepb.FromSite(&s)))
	if err != nil {
		t.Error(err)
	} else if diff := cmp.Diff(s, got, addresses); diff != "" {
		t.Errorf("a site changed on its way (-before +after):\n%s", diff)
	}
}

func TestHostileMessages(t *testing.T) {
	for name, p := range map[string]*measurepb.Definition{
		"nothing":         nil,
		"no program":      {Name: "x"},
		"address":         {Source: []byte{1, 2, 3}, Program: &measurepb.Definition_Catchment{}},
		"port":            {Port: 65536, Program: &measurepb.Definition_Catchment{}},
		"type of service": {Tos: 256, Program: &measurepb.Definition_Catchment{}},
		"weight":          {Weights: []*measurepb.Weight{{Network: []byte{1, 2, 3, 4}, Bits: 33}}, Program: &measurepb.Definition_Latency{}},
		"opt-out":         {OptOut: []*measurepb.Network{{Address: []byte{1}}}, Program: &measurepb.Definition_Latency{}},
	} {
		if d, err := measurepb.ToDefinition(p); err == nil {
			t.Errorf("%s: got %+v, want an error", name, d)
		}
	}
	for name, p := range map[string]*measurepb.Result{
		"nothing": nil,
		"empty":   {},
		"address": {Result: &measurepb.Result_Catch{Catch: &measurepb.Catch{Target: make([]byte, 5)}}},
		"flow":    {Result: &measurepb.Result_Catch{Catch: &measurepb.Catch{Flow: 1 << 20}}},
	} {
		if r, err := measurepb.ToResult(p); err == nil {
			t.Errorf("%s: got %+v, want an error", name, r)
		}
	}
}

func FuzzResult(f *testing.F) {
	fill := filler{rand.New(rand.NewPCG(7, 8))}
	for _, r := range []anycast.Result{&anycast.TraceResult{}, &anycast.FlipResult{}, &anycast.Summary{}} {
		fill.fill(reflect.ValueOf(r).Elem())
		data, err := proto.Marshal(measurepb.FromResult(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var p measurepb.Result
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		r, err := measurepb.ToResult(&p)
		if err != nil {
			return
		}
		// What was accepted once is a result like any other.
		again, err := measurepb.ToResult(measurepb.FromResult(r))
		if err != nil {
			t.Fatalf("refused after the way back: %v", err)
		}
		if diff := cmp.Diff(r, again, addresses, cmp.Comparer(func(a, b float64) bool { return a == b || a != a && b != b })); diff != "" {
			t.Errorf("changed on its way (-before +after):\n%s", diff)
		}
	})
}

func FuzzToAddr(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1})
	f.Add(make([]byte, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := measurepb.ToAddr(b)
		if err == nil && len(b) != 0 && string(measurepb.FromAddr(a)) != string(b) {
			t.Errorf("%x became %v", b, a)
		}
	})
}
