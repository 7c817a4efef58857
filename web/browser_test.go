// Copyright The Fathom Authors
// SPDX-License-Identifier: Apache-2.0

package web_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/seed5728abee/fathom/anycast"
	"github.com/seed5728abee/fathom/web"
)

// How long a page may take to show something: a busy machine starts a browser slowly.
const patience = 30 * time.Second

// tab is a page in a browser.
type tab struct {
	t   *testing.T
	ctx context.Context
	url string

	mu       sync.Mutex // guards all following fields
	problems []string   // what the browser complained about
}

// browse opens the page of a source in a browser without a screen. Every complaint of the browser fails the test.
func browse(t *testing.T, s web.Source, token string) *tab {
	t.Helper()
	if testing.Short() {
		t.Skip("a browser takes some seconds")
	}
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	h, err := web.New(web.Options{Source: s, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close()
		server.Close()
	})
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath(program), chromedp.UserDataDir(t.TempDir()))
	if os.Geteuid() == 0 {
		opts = append(opts, chromedp.NoSandbox) // Chromium's own sandbox refuses root
	}
	alloc, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // waits for the browser, so that its files can be removed
		stop()
	})
	b := &tab{t: t, ctx: ctx, url: server.URL}
	if _, err := chromedp.Run(ctx, chromedp.Func(func(_ context.Context, target *chromedp.Target) error {
		exceptions := cdp.Events(ctx, target, runtime.ExceptionThrown)
		entries := cdp.Events(ctx, target, cdplog.EntryAdded)
		go func() {
			for e, err := range exceptions {
				if err != nil {
					return
				}
				b.complain("exception: %s: %v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
			}
		}()
		go func() {
			for e, err := range entries {
				if err != nil {
					return
				}
				// What a test is refused on purpose is in the browser's log as well.
				if !strings.Contains(e.Entry.Text, "status of 401") && !strings.HasSuffix(e.Entry.URL, "/none/summary") {
					b.complain("%s: %s (%s)", e.Entry.Level, e.Entry.Text, e.Entry.URL)
				}
			}
		}()
		_, err := cdp.Call(ctx, target, cdplog.Enable, cdp.Empty{})
		return err
	})); err != nil { // the browser lives as long as the context of its first call
		t.Fatal(err)
	}
	return b
}

func (b *tab) complain(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, fmt.Sprintf(format, args...))
}

// quiet fails the test if the browser complained.
func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.problems {
		b.t.Error(p)
	}
	b.problems = nil
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	for _, step := range steps {
		ctx, cancel := context.WithTimeout(b.ctx, patience)
		_, err := chromedp.Run(ctx, step)
		cancel()
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

// value evaluates an expression in the page.
func value[T any](b *tab, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// navigated is what the browser says of a page that gave way to the next one while it was asked.
var navigated = regexp.MustCompile(`navigated or closed|context was destroyed|Cannot find context`)

// until waits until an expression in the page is true.
func (b *tab) until(expression string) {
	b.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
		is, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("Boolean(document.body && ("+expression+"))"))
		switch {
		case err == nil && is:
			return
		case err != nil && !navigated.MatchString(err.Error()):
			b.t.Fatalf("%s: %v", expression, err)
		}
	}
	b.picture("stuck")
	b.t.Fatalf("never true: %s\nthe page says:\n%s", expression, value[string](b, "document.body.innerText"))
}

// says waits until the page shows a text.
func (b *tab) says(text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

// size sets the window's, and the colours asked for.
func (b *tab) look(width, height int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height), chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
		})
		return err
	}))
}

// picture keeps what the whole page looks like with the test's artifacts.
func (b *tab) picture(name string) {
	b.t.Helper()
	data, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.t.ArtifactDir(), name+".png"), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// fits holds that nothing sticks out at the side.
func (b *tab) fits(what string) {
	b.t.Helper()
	if over := value[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
		b.t.Errorf("%s: the page is %d pixels wider than the window", what, over)
	}
}

func TestPages(t *testing.T) {
	b := browse(t, world(t), "")
	looks := []struct {
		name          string
		width, height int64
		scheme        string
	}{
		{"light", 1440, 900, "light"}, {"dark", 1440, 900, "dark"}, {"narrow", 400, 800, "light"},
	}
	drawn := `document.querySelector('canvas.map').toDataURL().length > 3000`
	pages := []struct {
		name, hash string
		says       []string
		true       []string
	}{
		{"overview", "#/", []string{"6\nsites connected", "Latest catchment", "syd", "Voltadomar, hears only"}, []string{drawn}},
		{"catchment", "#/m/m1", []string{"hit list, Friday", "networks answer", "opt-out", "the connection to site syd was lost"}, []string{
			drawn, `document.querySelectorAll('.share > span').length === 6`, `document.querySelectorAll('.pager')[0].innerText.includes('1–25 of')`,
		}},
		{"compare", "#/compare/m1/m2", []string{"Who moved", "networks moved"}, []string{`document.querySelectorAll('.matrix button').length > 2`, `document.querySelectorAll('tbody tr').length > 20`}},
		{"latency", "#/m/m3", []string{"worst detour", "Worst detours"}, []string{`document.querySelectorAll('svg.chart path').length === 6`}},
		{"watch", "#/m/m4", []string{"3.4 s", "until it settled", "Who moved where"}, []string{`document.querySelectorAll('svg.chart path').length === 7`}},
		{"flipping", "#/m/m5", []string{"47\ntargets reach several sites", "after hop"}, nil},
		{"trace", "#/m/m6", []string{"Path to www.example.net", "198.51.100.7", "heard at ams"}, []string{`document.querySelectorAll('.hops g').length === 10`}},
		{"chaos", "#/m/m7", []string{"ns1.fra.example.net", hostile}, []string{`document.title !== 'owned'`, `document.querySelectorAll('main img').length === 0`}},
		{"volta", "#/m/m8", []string{"Traceroute to 198.51.100.7"}, nil},
		{"missing", "#/m/none", []string{"no such measurement"}, nil},
	}
	b.do(chromedp.Navigate(b.url + "/"))
	for _, look := range looks {
		b.look(look.width, look.height, look.scheme)
		for _, page := range pages {
			b.do(chromedp.Navigate(b.url + "/" + page.hash))
			for _, text := range page.says {
				b.says(text)
			}
			for _, expression := range page.true {
				b.until(expression)
			}
			b.fits(look.name + " " + page.name)
			b.picture(page.name + "-" + look.name)
			b.quiet()
		}
	}
}

func TestMapZooms(t *testing.T) {
	b := browse(t, world(t), "")
	b.look(1200, 900, "light")
	b.do(chromedp.Navigate(b.url + "/#/m/m1"))
	b.until(`document.querySelector('canvas.map')`)
	b.says("All of IPv4")
	press := func(key string) {
		t.Helper()
		value[bool](b, fmt.Sprintf(`document.querySelector('canvas.map').dispatchEvent(new KeyboardEvent('keydown', {key: %q, cancelable: true}))`, key))
	}
	// The curve begins at the top left and goes down or right: two squares away from the corner is another block.
	press("ArrowRight")
	press("ArrowRight")
	b.until(`/\d+\.0\.0\.0\/8 /.test(document.querySelector('.about').innerText)`)
	eight := value[string](b, `document.querySelector('.about b').innerText`)
	press("Enter")
	b.until(fmt.Sprintf(`document.querySelector('.crumbs').innerText.includes(%q)`, eight))
	b.until(`document.querySelector('.about b').innerText.endsWith('/8') && !document.querySelector('.about').innerText.includes('nothing probed')`)
	b.picture("map-8")
	for i := 0; i < 16 && value[bool](b, `document.querySelectorAll('.crumbs button').length === 2`); i++ {
		press([]string{"ArrowRight", "ArrowDown"}[i%2])
		press("Enter")
	}
	b.until(`/\/16$/.test(document.querySelector('.crumbs').innerText.trim())`)
	b.picture("map-16")
	press("Escape")
	press("Escape")
	b.says("All of IPv4")
	b.quiet()
}

func TestRunningMeasurement(t *testing.T) {
	s := world(t)
	m := measured("n1", anycast.KindCatchment, "running now", 4000)
	m.State, m.End, m.Progress, m.Start = anycast.Running, time.Time{}, anycast.Progress{Total: 4000}, time.Now()
	k := s.add(m)
	b := browse(t, s, "")
	b.look(1440, 900, "light")
	b.do(chromedp.Navigate(b.url + "/#/m/n1"))
	b.says("Nothing found yet")
	b.says("live")
	var found []anycast.Result
	for i := range 1000 {
		found = append(found, catch(fmt.Sprintf("%d.20.%d.1", 1+i%200, i/200), names[i%2]))
	}
	s.append(k, anycast.Progress{Done: 1000, Total: 4000, Sent: 1000, Answered: 1000, Left: 90 * time.Second}, found...)
	b.says("25 %, 1,000 of 4,000 targets")
	b.says("1,000\nnetworks answer")
	b.until(`document.querySelector('#side a[aria-current]').innerText.includes('25 %')`)
	b.picture("running")
	s.append(k, anycast.Progress{Done: 4000, Total: 4000, Sent: 4000, Answered: 1001}, catch("9.9.9.9", "syd"))
	s.end(k, anycast.Done)
	b.says("1,001\nnetworks answer")
	b.until(`document.querySelector('.title .pill').innerText === 'done'`)
	s.mu.Lock()
	times := s.followed["n1"]
	s.mu.Unlock()
	if times != 1 {
		t.Errorf("the source was asked %d times to follow one measurement", times)
	}
	b.quiet()
}

func TestOriginsInBrowser(t *testing.T) {
	b := browse(t, twoOrigins(), "")
	for _, width := range []int64{400, 1440} {
		b.look(width, 900, "light")
		b.do(chromedp.Navigate(b.url + "/#/m/o"))
		b.says("Elsewhere than from east")
		b.says("1 of 2")
		b.fits("origins")
	}
	shown := `[...document.querySelectorAll('table')].at(-1).innerText`
	b.until(shown + `.includes('fra')`)
	b.picture("origins-light")
	value[any](b, `[...document.querySelectorAll('button')].find((x) => x.innerText === 'west').click()`)
	b.until(shown + `.includes('syd') && !` + shown + `.includes('fra')`)
	b.until(`[...document.querySelectorAll('button[aria-pressed=true]')].map((x) => x.innerText).join() === 'west'`)
	b.quiet()
}

func TestNetworkSearch(t *testing.T) {
	s := newMemory()
	s.add(measured("a", anycast.KindCatchment, "few", 3), catch("1.2.3.4", "fra"), catch("1.2.4.4", "nyc"), catch("1.2.4.5", "syd"), catch("9.0.0.1", ""))
	s.add(measured("b", anycast.KindCatchment, "later", 3), catch("1.2.3.4", "nyc"), catch("1.2.4.4", "nyc"), catch("9.0.0.1", "syd"))
	b := browse(t, s, "")
	b.look(1440, 900, "light")
	b.do(chromedp.Navigate(b.url + "/#/m/a"))
	b.says("1–3 of 3")
	b.do(chromedp.SendKeys(chromedp.CSS("input[type=search]"), "1.2.4.77"))
	b.says("1–1 of 1")
	if text := value[string](b, `document.querySelector('tbody:last-of-type tr').closest('main').innerText`); !strings.Contains(text, "1.2.4.0/24") {
		t.Errorf("the table does not show the network of the address:\n%s", text)
	}
	// From here to the comparison, by the list beside the name.
	value[bool](b, `(() => { const s = document.querySelector('select[aria-label="Compare with"]'); s.value = 'b'; return s.dispatchEvent(new Event('change')); })()`)
	b.says("networks moved")
	b.says("1–2 of 2")
	b.until(`document.querySelector('.matrix button[title="fra to nyc"]')`)
	value[any](b, `document.querySelector('.matrix button[title="fra to nyc"]').click()`)
	b.says("1–1 of 1")
	b.says("1.2.3.0/24")
	b.quiet()
}

func TestTokenInBrowser(t *testing.T) {
	b := browse(t, world(t), "open sesame")
	b.do(chromedp.Navigate(b.url + "/"))
	b.says("Open this page with its token")
	b.do(chromedp.Navigate(b.url + "/?token=open%20sesame"))
	b.says("sites connected")
	if at := value[string](b, "location.href"); at != b.url+"/" {
		t.Errorf("the address is %s: the token stays in it", at)
	}
	if cookies := value[string](b, "document.cookie"); cookies != "" {
		t.Errorf("scripts can read the cookie: %q", cookies)
	}
	b.quiet()
}
