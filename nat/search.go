// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/ipv4"
)

// The library's own search waits out its whole time, does not tell who answered, and takes as many answers as come.

// searchTargets are what gateways answer to: IGD 2, IGD 1, and, for those that only know themselves as devices, all.
var searchTargets = []string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"upnp:rootdevice",
}

const (
	searchWait   = 1 // MX, in seconds: the longest that gateways may wait before they answer
	searchRepeat = 400 * time.Millisecond
	maxSearch    = 32   // answers that are looked at
	maxAnswer    = 2048 // bytes of one
)

// searchRequest is an M-SEARCH (UPnP Device Architecture 1.1, section 1.3.2).
func searchRequest(to netip.AddrPort, target string) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: %v\r\nMAN: \"ssdp:discover\"\r\nMX: %d\r\nST: %s\r\n\r\n", to, searchWait, target)
}

// found is a device that answered a search.
type found struct {
	location *url.URL
	from     netip.Addr
}

// errSearch: an answer that leads nowhere.
var errSearch = errors.New("not an answer of a gateway")

// parseSearchAnswer finds where an answer that came from an address says that the device is described. That must be at
// the same address: nobody answers for another.
func parseSearchAnswer(packet []byte, from netip.Addr) (found, error) {
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(packet)), nil)
	if err != nil {
		return found{}, fmt.Errorf("%w: %w", errSearch, err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return found{}, fmt.Errorf("%w: status %d", errSearch, response.StatusCode)
	}
	location, err := url.Parse(response.Header.Get("Location"))
	if err != nil {
		return found{}, fmt.Errorf("%w: %w", errSearch, err)
	}
	return found{location, from}, ownURL(location, from)
}

// ownURL refuses a URL that is not of this address over plain HTTP.
func ownURL(u *url.URL, of netip.Addr) error {
	host, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "http" || err != nil || host.Unmap() != of.Unmap() {
		return fmt.Errorf("%w: %v describes itself at %.100q", errSearch, of, u.String())
	}
	return nil
}

// search asks for UPnP devices and calls visit for each answer of the gateway, or of anyone if the gateway is not known, until visit returns
// true or ctx ends.
func search(ctx context.Context, o *Options, gateway, local netip.Addr, visit func(found) bool) error {
	var conn *net.UDPConn
	err := o.Do(func() (err error) {
		if conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: local.AsSlice()}); err != nil {
			return err
		}
		return throughInterface(conn, local)
	})
	if err != nil {
		if conn != nil {
			conn.Close()
		}
		return fmt.Errorf("search UPnP gateways: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()

	to := []netip.AddrPort{o.SearchAddr}
	if gateway.IsValid() && o.SearchAddr == searchAddr {
		// Wireless networks lose multicast, and gateways answer unicast too.
		to = append(to, netip.AddrPortFrom(gateway, searchAddr.Port()))
	}
	ask := func() {
		for _, target := range searchTargets {
			for _, a := range to {
				// An error is no loss: there are others to ask, and the next round.
				_, _ = conn.WriteToUDPAddrPort(searchRequest(o.SearchAddr, target), a)
			}
		}
	}
	ask()
	repeat := time.AfterFunc(searchRepeat, ask)
	defer repeat.Stop()

	seen := map[string]bool{}
	buf := make([]byte, maxAnswer)
	for len(seen) < maxSearch {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error about a question
		}
		addr := from.Addr().Unmap()
		if gateway.IsValid() && addr != gateway {
			continue
		}
		f, err := parseSearchAnswer(buf[:n], addr)
		if err != nil {
			o.Log.Debug("search for UPnP gateways", "from", from, "error", err)
			continue
		}
		if seen[f.location.String()] {
			continue
		}
		seen[f.location.String()] = true
		if visit(f) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s devices answer, and none is a gateway", errSearch, strconv.Itoa(maxSearch))
}

// throughInterface makes multicasts leave through the interface with an address, as the routing table may not know better.
func throughInterface(conn *net.UDPConn, local netip.Addr) error {
	if !local.IsValid() || local.IsLoopback() || local.IsUnspecified() {
		return nil
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for i := range interfaces {
		addrs, _ := interfaces[i].Addrs() // of one that has just gone
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == local {
				return ipv4.NewPacketConn(conn).SetMulticastInterface(&interfaces[i])
			}
		}
	}
	return nil
}

// The most that is read of what a gateway sends over HTTP, in bytes. Descriptions are the longest, with some 10 kB.
const (
	maxBody    = 256 << 10
	maxHeaders = 16 << 10
)

// httpTransport reaches gateways: at their addresses, not over a proxy, with nothing kept open that a restart would break, and
// with an end to what they say.
func httpTransport(o *Options) http.RoundTripper {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return boundedTransport{&http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = o.Do(func() (err error) {
				conn, err = dialer.DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
		DisableKeepAlives:      true,
		DisableCompression:     true, // its length is no measure
		ResponseHeaderTimeout:  askTimeout,
		MaxResponseHeaderBytes: maxHeaders,
	}}
}

type boundedTransport struct{ http.RoundTripper }

func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if location := response.Header.Get("Location"); location != "" && response.StatusCode/100 == 3 {
		response.Body.Close()
		return nil, fmt.Errorf("%w: it sends us to %.100q", ErrRefused, strings.ToValidUTF8(location, "?"))
	}
	response.Body = http.MaxBytesReader(nil, response.Body, maxBody)
	return response, nil
}
