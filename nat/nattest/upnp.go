// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package nattest

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/seed5728abee/fathom/nat"
)

const igd = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"

// answerSearches answers UPnP's M-SEARCH until the socket is closed.
func (g *Gateway) answerSearches() {
	buf := make([]byte, 2048)
	for {
		n, from, err := g.searching.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(buf[:n])))
		if err != nil || r.Method != "M-SEARCH" || r.Header.Get("ST") != igd {
			continue
		}
		g.mu.Lock()
		var at string
		if g.web != nil && g.behaviour.speaks(nat.UPnP) {
			at = g.web.URL
			if g.behaviour.Elsewhere {
				at = strings.Replace(at, g.addr.String(), "192.0.2.1", 1)
			}
		}
		g.mu.Unlock()
		if at != "" {
			answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: %s\r\nUSN: uuid:1::%s\r\nEXT:\r\nLOCATION: %s/root.xml\r\n\r\n", igd, igd, at)
			_, _ = g.searching.WriteToUDPAddrPort([]byte(answer), from) // a client that is gone needs none
		}
	}
}

const description = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>` + igd + `</deviceType><friendlyName>Test router</friendlyName><UDN>uuid:1</UDN>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><UDN>uuid:2</UDN>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><UDN>uuid:3</UDN>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><controlURL>/control</controlURL><eventSubURL>/event</eventSubURL><SCPDURL>/scpd.xml</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>`

func (g *Gateway) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /root.xml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = io.WriteString(w, description) // to a client that may be gone
	})
	mux.HandleFunc("POST /control", g.serveControl)
	return mux
}

// upnpError is a number of UPnP's, and its words.
type upnpError struct {
	code int
	text string
}

var (
	errInvalidAction = &upnpError{401, "Invalid Action"}
	errNotAuthorized = &upnpError{606, "Action not authorized"}
	errNoSuchIndex   = &upnpError{713, "SpecifiedArrayIndexInvalid"}
	errNoSuchEntry   = &upnpError{714, "NoSuchEntryInArray"}
	errConflict      = &upnpError{718, "ConflictInMappingEntry"}
	errSamePorts     = &upnpError{724, "SamePortValuesRequired"}
	errPermanentOnly = &upnpError{725, "OnlyPermanentLeasesSupported"}
)

// serveControl answers SOAP.
func (g *Gateway) serveControl(w http.ResponseWriter, r *http.Request) {
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
	args, err := arguments(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	results, failed := g.act(action, args)
	w.Header().Set("Content-Type", "text/xml")
	var body strings.Builder
	if failed != nil {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(&body, `<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">`+
			`<errorCode>%d</errorCode><errorDescription>%s</errorDescription></UPnPError></detail></s:Fault>`, failed.code, failed.text)
	} else {
		fmt.Fprintf(&body, `<u:%sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">`, action)
		for i := 0; i < len(results); i += 2 {
			fmt.Fprintf(&body, "<%s>", results[i])
			_ = xml.EscapeText(&body, []byte(results[i+1])) // in memory
			fmt.Fprintf(&body, "</%s>", results[i])
		}
		fmt.Fprintf(&body, "</u:%sResponse>", action)
	}
	fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>%s</s:Body></s:Envelope>`, &body)
}

// arguments are the elements of a SOAP request that hold text.
func arguments(r io.Reader) (map[string]string, error) {
	args := map[string]string{}
	d := xml.NewDecoder(io.LimitReader(r, 1<<16))
	name := ""
	for {
		token, err := d.Token()
		switch t := token.(type) {
		case xml.StartElement:
			name = t.Name.Local
			args[name] = ""
		case xml.CharData:
			args[name] += string(t)
		case xml.EndElement:
			name = ""
		}
		if err == io.EOF {
			return args, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// act does what is asked. The results are names and values in turn.
func (g *Gateway) act(action string, args map[string]string) ([]string, *upnpError) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests[nat.UPnP]++
	g.expireLocked()
	protocol, _ := nat.ParseProtocol(args["NewProtocol"])
	external, _ := strconv.ParseUint(args["NewExternalPort"], 10, 16)
	k := key{protocol, uint16(external)}
	m, mapped := g.mappings[k]
	switch action {
	case "GetExternalIPAddress":
		return []string{"NewExternalIPAddress", g.externalLocked().String()}, nil
	case "GetStatusInfo":
		return []string{"NewConnectionStatus", "Connected", "NewLastConnectionError", "ERROR_NONE", "NewUptime", strconv.Itoa(int(g.epochLocked()))}, nil
	case "GetSpecificPortMappingEntry":
		switch {
		case g.behaviour.Mute:
			return nil, errInvalidAction
		case !mapped:
			return nil, errNoSuchEntry
		}
		return m.entry(), nil
	case "GetGenericPortMappingEntry":
		i, err := strconv.Atoi(args["NewPortMappingIndex"])
		all := g.sortedLocked()
		if err != nil || i < 0 || i >= len(all) {
			return nil, errNoSuchIndex
		}
		m := all[i]
		return append([]string{
			"NewRemoteHost", "", "NewExternalPort", strconv.Itoa(int(m.External)), "NewProtocol", strings.ToUpper(m.Protocol.String()),
		}, m.entry()...), nil
	case "DeletePortMapping":
		if !mapped {
			return nil, errNoSuchEntry
		}
		delete(g.mappings, k)
		return nil, nil
	case "AddPortMapping":
		client, err := netip.ParseAddr(args["NewInternalClient"])
		internal, portErr := strconv.ParseUint(args["NewInternalPort"], 10, 16)
		lease, leaseErr := strconv.ParseUint(args["NewLeaseDuration"], 10, 32)
		switch {
		case err != nil || portErr != nil || leaseErr != nil || protocol == 0 || external == 0:
			return nil, errInvalidAction
		case g.behaviour.Refuse:
			return nil, errNotAuthorized
		case g.behaviour.SamePorts && internal != external:
			return nil, errSamePorts
		case g.behaviour.PermanentOnly && lease != 0:
			return nil, errPermanentOnly
		case mapped && m.Internal.Addr() != client && !g.behaviour.Overwrite:
			return nil, errConflict
		}
		m := Mapping{
			Protocol: protocol, External: uint16(external), Internal: netip.AddrPortFrom(client, uint16(internal)),
			Description: args["NewPortMappingDescription"],
		}
		if lease != 0 {
			m.Expires = time.Now().Add(g.grantLocked(time.Duration(lease) * time.Second))
		}
		g.mappings[k] = m
		return nil, nil
	}
	return nil, errInvalidAction
}

// entry describes a mapping as both actions that look one up do. A lease that has begun its last second has not ended.
func (m Mapping) entry() []string {
	var lease int
	if !m.Expires.IsZero() {
		lease = int((time.Until(m.Expires) + time.Second - 1) / time.Second)
	}
	return []string{
		"NewInternalPort", strconv.Itoa(int(m.Internal.Port())), "NewInternalClient", m.Internal.Addr().String(), "NewEnabled", "1",
		"NewPortMappingDescription", m.Description, "NewLeaseDuration", strconv.Itoa(lease),
	}
}
