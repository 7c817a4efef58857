// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nat

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"time"
	"unicode"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

// connection is the part of UPnP's services that maps ports. IGD 1 and 2, over IP and PPP, have the same words for it.
type connection interface {
	GetServiceClient() *goupnp.ServiceClient
	GetExternalIPAddressCtx(ctx context.Context) (address string, err error)
	GetStatusInfoCtx(ctx context.Context) (status, lastError string, uptime uint32, err error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool,
		description string, lease uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
	GetSpecificPortMappingEntryCtx(ctx context.Context, remote string, external uint16, protocol string) (internal uint16, client string,
		enabled bool, description string, lease uint32, err error)
	GetGenericPortMappingEntryCtx(ctx context.Context, index uint16) (remote string, external uint16, protocol string, internal uint16, client string,
		enabled bool, description string, lease uint32, err error)
}

// The errors of UPnP's services (WANIPConnection:2, sections 2.5.16 to 2.5.21).
const (
	upnpActionFailed   = 501
	upnpNotAuthorized  = 606
	upnpNoSuchIndex    = 713
	upnpNoSuchEntry    = 714
	upnpConflict       = 718 // another host has the port
	upnpSamePorts      = 724 // internal and external port must be the same
	upnpPermanentOnly  = 725 // no leases
	upnpOtherMechanism = 729 // PCP or the gateway itself has the port
)

// upnpDoor asks by UPnP.
type upnpDoor struct {
	gateway, local netip.Addr
	allowPrivate   bool
	service        connection
	device         string
}

// openUPnP reads the description of a device and finds the service in it that maps ports.
func openUPnP(ctx context.Context, o *Options, f found, local netip.Addr) (*upnpDoor, error) {
	transport := httpTransport(o)
	client := &http.Client{Transport: transport}
	root, err := describe(ctx, client, f)
	if err != nil {
		return nil, err
	}
	service, err := findConnection(ctx, root, f, transport)
	if err != nil {
		return nil, err
	}
	return &upnpDoor{gateway: f.from, local: local, allowPrivate: o.AllowPrivate, service: service, device: deviceName(&root.Device)}, nil
}

// describe fetches the description of a device.
func describe(ctx context.Context, client *http.Client, f found) (*goupnp.RootDevice, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.location.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: UPnP: %w", ErrNoAnswer, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: description: HTTP status %d", errSearch, response.StatusCode)
	}
	return parseDescription(response.Body, f)
}

// parseDescription decodes what a device says about itself.
func parseDescription(r io.Reader, f found) (*goupnp.RootDevice, error) {
	decoder := xml.NewDecoder(r)
	decoder.DefaultSpace = goupnp.DeviceXMLNamespace
	root := new(goupnp.RootDevice)
	if err := decoder.Decode(root); err != nil {
		return nil, fmt.Errorf("%w: description: %w", errSearch, err)
	}
	base := f.location
	if root.URLBaseStr != "" {
		var err error
		if base, err = url.Parse(root.URLBaseStr); err != nil {
			return nil, fmt.Errorf("%w: description: %w", errSearch, err)
		}
	}
	root.SetURLBase(base)
	return root, nil
}

// maxServices is how many services of one kind are looked at: a gateway has one for each of its connections.
const maxServices = 8

// connections are the services that map ports, the newest kind first. Those elsewhere than on the device itself do not count.
func connections(root *goupnp.RootDevice, f found) []connection {
	var all []connection
	if services, err := internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, f.location); err == nil {
		for _, s := range services {
			all = append(all, s)
		}
	}
	if services, err := internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, f.location); err == nil {
		for _, s := range services {
			all = append(all, s)
		}
	}
	if services, err := internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, f.location); err == nil {
		for _, s := range services {
			all = append(all, s)
		}
	}
	var usable []connection
	for _, s := range all {
		// A control URL that the library cannot read is empty here.
		if ownURL(&s.GetServiceClient().SOAPClient.EndpointURL, f.from) == nil && len(usable) < maxServices {
			usable = append(usable, s)
		}
	}
	return usable
}

// findConnection finds the service of the connection that is up. If none says so it is the first.
func findConnection(ctx context.Context, root *goupnp.RootDevice, f found, transport http.RoundTripper) (connection, error) {
	all := connections(root, f)
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: %v has no service that maps ports", errSearch, f.from)
	}
	for _, s := range all {
		s.GetServiceClient().SOAPClient.HTTPClient = http.Client{Transport: transport, Timeout: askTimeout}
	}
	if len(all) > 1 { // as where a router has a spare line
		for _, s := range all {
			if status, _, _, err := s.GetStatusInfoCtx(ctx); err == nil && status == "Connected" {
				return s, nil
			}
		}
	}
	return all[0], nil
}

// deviceName is what people know the gateway by.
func deviceName(d *goupnp.Device) string {
	name := d.FriendlyName
	if name == "" {
		name = d.ModelName
	}
	return printable(name)
}

// printable makes a text from outside fit for terminals and logs.
func printable(s string) string {
	runes := []rune(s)
	runes = runes[:min(len(runes), maxDescription)]
	for i, r := range runes {
		if !unicode.IsPrint(r) {
			runes[i] = '?'
		}
	}
	return string(runes)
}

func (d *upnpDoor) method() Method      { return UPnP }
func (d *upnpDoor) client() netip.Addr  { return d.local }
func (d *upnpDoor) address() netip.Addr { return d.gateway }

func (d *upnpDoor) external(ctx context.Context) (netip.Addr, error) {
	text, err := d.service.GetExternalIPAddressCtx(ctx)
	switch {
	case upnpCode(err) == upnpActionFailed: // what miniupnpd says when its own address is private
		return netip.Addr{}, fmt.Errorf("UPnP: external address: error %d: %w", upnpActionFailed, doubleNAT(d.gateway, netip.Addr{}))
	case err != nil:
		return netip.Addr{}, d.failed("external address", err)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil { // empty while it is not connected
		return netip.Addr{}, fmt.Errorf("UPnP: external address %.40q: %w", text, doubleNAT(d.gateway, netip.Addr{}))
	}
	return addr.Unmap(), nil
}

// upnpCode is the number of a gateway's error, or 0.
func upnpCode(err error) int {
	if fault, ok := errors.AsType[*soap.SOAPFaultError](err); ok {
		return fault.Detail.UPnPError.Errorcode
	}
	return 0
}

// failed puts an error of the service into our words.
func (d *upnpDoor) failed(what string, err error) error {
	fault, ok := errors.AsType[*soap.SOAPFaultError](err)
	if !ok {
		return fmt.Errorf("%w: UPnP: %s: %w", ErrNoAnswer, what, err)
	}
	code, text := fault.Detail.UPnPError.Errorcode, printable(fault.Detail.UPnPError.ErrorDescription)
	kind := ErrRefused
	switch code {
	case upnpConflict, upnpOtherMechanism:
		kind = ErrPortTaken
	}
	return fmt.Errorf("%w: UPnP: %s: error %d %s", kind, what, code, text)
}

func upnpProtocol(p Protocol) string {
	if p == UDP {
		return "UDP"
	}
	return "TCP"
}

// entry is what the gateway has on an external port. ok is false if it has nothing; known is false if it does not tell.
func (d *upnpDoor) entry(ctx context.Context, p Protocol, port uint16) (e Lease, ok, known bool, err error) {
	internal, client, enabled, description, lease, err := d.service.GetSpecificPortMappingEntryCtx(ctx, "", port, upnpProtocol(p))
	switch code := upnpCode(err); {
	case code == upnpNoSuchEntry || code == upnpNoSuchIndex:
		return Lease{}, false, true, nil
	case code != 0: // many gateways do not have this action, or only for those who have logged in
		return Lease{}, false, false, nil
	case err != nil:
		return Lease{}, false, false, d.failed("look a mapping up", err)
	}
	addr, err := netip.ParseAddr(client)
	if err != nil || !enabled {
		return Lease{}, false, false, nil
	}
	return Lease{
		Protocol: p, ExternalPort: port, Internal: netip.AddrPortFrom(addr.Unmap(), internal),
		Description: printable(description), Remaining: time.Duration(lease) * time.Second,
	}, true, true, nil
}

// add looks first who has the port, because many gateways let anyone replace the mappings of anyone, and looks again
// afterwards what came of it.
func (d *upnpDoor) add(ctx context.Context, l lease) (lease, error) {
	external, err := d.external(ctx)
	switch {
	case err != nil:
		return lease{}, err
	case !IsPublic(external) && !d.allowPrivate:
		return lease{}, doubleNAT(d.gateway, external)
	}
	port := l.external.Port()
	e, there, _, err := d.entry(ctx, l.protocol, port)
	if err != nil {
		return lease{}, err
	}
	if there && e.Internal != l.internal {
		return lease{}, fmt.Errorf("%w: %v port %d forwards to %v", ErrPortTaken, l.protocol, port, e.Internal)
	}
	asked := max(l.lifetime, time.Second)
	err = d.addPort(ctx, l, asked)
	if upnpCode(err) == upnpPermanentOnly {
		asked = 0
		err = d.addPort(ctx, l, asked)
	}
	switch code := upnpCode(err); {
	case code == upnpSamePorts:
		return lease{}, fmt.Errorf("%w: UPnP: this gateway maps port %d to itself only", ErrPortTaken, l.internal.Port())
	case (code == upnpActionFailed || code == upnpNotAuthorized) && !IsPublic(external):
		return lease{}, fmt.Errorf("UPnP: error %d: %w", code, doubleNAT(d.gateway, external))
	case err != nil:
		return lease{}, d.failed("map a port", err)
	}
	l.external, l.lifetime = netip.AddrPortFrom(external, port), asked
	e, there, known, err := d.entry(ctx, l.protocol, port)
	switch {
	case err != nil:
		return lease{}, errors.Join(err, d.remove(ctx, l))
	case !known:
	case !there:
		return lease{}, fmt.Errorf("%w: UPnP: it agreed to map port %d, and did not", ErrRefused, port)
	case e.Internal != l.internal: // another host was faster, and is not to be disturbed
		return lease{}, fmt.Errorf("%w: %v port %d forwards to %v", ErrPortTaken, l.protocol, port, e.Internal)
	default:
		l.lifetime = e.Remaining
	}
	return l, nil
}

func (d *upnpDoor) addPort(ctx context.Context, l lease, lifetime time.Duration) error {
	return d.service.AddPortMappingCtx(ctx, "", l.external.Port(), upnpProtocol(l.protocol), l.internal.Port(), l.internal.Addr().String(), true,
		l.description, uint32(lifetime/time.Second))
}

func (d *upnpDoor) remove(ctx context.Context, l lease) error {
	// Nobody else's: the gateway may have given the port to another host since.
	e, there, known, err := d.entry(ctx, l.protocol, l.external.Port())
	if err != nil {
		return err
	}
	if known && (!there || e.Internal != l.internal) {
		return nil
	}
	err = d.service.DeletePortMappingCtx(ctx, "", l.external.Port(), upnpProtocol(l.protocol))
	if err != nil && upnpCode(err) != upnpNoSuchEntry {
		return d.failed("remove a mapping", err)
	}
	return nil
}

func (d *upnpDoor) check(ctx context.Context, l lease) error {
	external, err := d.external(ctx)
	if err != nil {
		return err
	}
	if external != l.external.Addr() {
		return fmt.Errorf("%w: external address is %v", errStale, external)
	}
	e, there, known, err := d.entry(ctx, l.protocol, l.external.Port())
	switch {
	case err != nil:
		return err
	case known && !there:
		return fmt.Errorf("%w: the gateway has forgotten it", errStale)
	case known && e.Internal != l.internal:
		return fmt.Errorf("%w: it forwards to %v", errStale, e.Internal)
	}
	return nil
}

func (d *upnpDoor) probe(ctx context.Context) (Answer, error) {
	a := Answer{Device: d.device}
	external, err := d.external(ctx)
	a.External = external
	if errors.Is(err, ErrRefused) {
		err = nil // mapping will tell more
	}
	if _, _, uptime, statusErr := d.service.GetStatusInfoCtx(ctx); statusErr == nil {
		a.Uptime = time.Duration(uptime) * time.Second
	}
	return a, err
}

// maxLeases is how many mappings are listed.
const maxLeases = 256

// leases lists what the gateway forwards, to whomever.
func (d *upnpDoor) leases(ctx context.Context) ([]Lease, error) {
	var all []Lease
	for i := range uint16(maxLeases) {
		_, external, protocol, internal, client, _, description, lease, err := d.service.GetGenericPortMappingEntryCtx(ctx, i)
		if upnpCode(err) != 0 { // the end of the list, in whatever words
			break
		} else if err != nil {
			return all, d.failed("list mappings", err)
		}
		p, err := ParseProtocol(protocol)
		addr, addrErr := netip.ParseAddr(client)
		if err != nil || addrErr != nil {
			continue
		}
		all = append(all, Lease{
			Protocol: p, ExternalPort: external, Internal: netip.AddrPortFrom(addr.Unmap(), internal),
			Description: printable(description), Remaining: time.Duration(lease) * time.Second,
		})
	}
	return all, nil
}
