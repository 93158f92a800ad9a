package outside

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"pillarbox/objstore/pool"
)

// fault is what a provider may do to a request.
type fault int

const (
	none      fault = iota
	broken          // 500, and nothing was done
	slowDown        // 503 with Retry-After, and nothing was done
	hungUp          // the connection ends, nothing was done
	forgotten       // it was done, and the connection ends before the answer
	cut             // the body of the answer ends early
	garbled         // the body of the answer has another byte, if it is one of a file
	silent          // no answer, for as long as the fault is set; nothing was done
	stale           // a list is that of before the fault was set; S3 only
	lost            // a removal was done, says the answer, and was not; S3 only
	faults
)

// faultyProvider is a proxy before a store, which does what faulty providers do.
type faultyProvider struct {
	*httptest.Server
	mu    sync.Mutex
	n     int               // requests since set
	every int               // one of so many requests meets a fault; 0: none
	count [faults]int       // how often what was done
	only  fault             // this one; none: each in its turn
	lists map[string][]byte // the last true answers, by the request's query
	over  chan struct{}     // closed by the next set
}

func newProvider(t *testing.T, origin string) *faultyProvider {
	t.Helper()
	to, err := url.Parse(origin)
	if err != nil {
		t.Fatal(err)
	}
	p := &faultyProvider{lists: map[string][]byte{}, over: make(chan struct{})}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }, // which S3's clients sign
		ModifyResponse: p.spoil,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, over := p.draw()
		r.Header.Set("X-Test-Fault", strconv.Itoa(int(f)))
		switch f {
		case broken:
			http.Error(w, "something broke", http.StatusInternalServerError)
		case slowDown:
			w.Header().Set("Retry-After", "0.05")
			http.Error(w, "slow down", http.StatusServiceUnavailable)
		case hungUp:
			panic(http.ErrAbortHandler)
		case silent:
			io.Copy(io.Discard, r.Body) // else it would not be seen that the client has gone
			select {
			case <-over:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		default:
			if f == lost && isRemoval(r) {
				p.lose()
				io.WriteString(w, `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></DeleteResult>`)
				return
			}
			proxy.ServeHTTP(w, r)
		}
	}))
	p.Config.ErrorLog = nil
	p.Start()
	t.Cleanup(func() {
		p.set(0, none)
		p.Close()
	})
	return p
}

// set makes one of so many requests meet a fault, a certain one or each in its turn.
func (p *faultyProvider) set(every int, only fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.every, p.only = 0, every, only
	close(p.over)
	p.over = make(chan struct{})
}

// draw is what happens to the next request, and a channel that is closed when it is over.
func (p *faultyProvider) draw() (fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := none
	if p.n++; p.every > 0 && p.n%p.every == 0 {
		if f = p.only; f == none {
			f = broken + fault(p.n/p.every)%(garbled-broken)
		}
	}
	if f != lost {
		p.count[f]++
	}
	return f, p.over
}

func (p *faultyProvider) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count[lost]++
}

// removals is how many requests to remove something were answered and not carried out.
func (p *faultyProvider) removals() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count[lost]
}

// isRemoval and isList say what a request of an S3 client is.
func isRemoval(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Query().Has("delete")
}

func isList(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Query().Has("list-type")
}

// list remembers the answer to a request for a list, or answers as it was before.
func (p *faultyProvider) list(res *http.Response, old bool) error {
	now, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	query := res.Request.URL.Query().Encode()
	if before, ok := p.lists[query]; old && ok {
		now = before
	}
	p.lists[query] = now
	res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(now)), int64(len(now))
	res.Header.Set("Content-Length", strconv.Itoa(len(now)))
	return nil
}

// missed says which of the kinds of faults no request met.
func (p *faultyProvider) missed() (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := broken; f < garbled; f++ {
		if p.count[f] == 0 {
			list = append(list, fmt.Sprint("fault ", int(f)))
		}
	}
	return list
}

// spoil does to an answer what was drawn for its request.
func (p *faultyProvider) spoil(res *http.Response) error {
	n, _ := strconv.Atoi(res.Request.Header.Get("X-Test-Fault"))
	f := fault(n)
	if isList(res.Request) && res.StatusCode < 300 && (f == none || f == stale) {
		return p.list(res, f == stale)
	}
	switch f {
	case forgotten:
		res.Body.Close()
		return io.ErrUnexpectedEOF
	case cut, garbled:
		if res.Request.Method != http.MethodGet || res.StatusCode >= 300 {
			return nil
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			return err
		}
		switch {
		case f == cut:
			b = b[:len(b)/2]
		case isBody(res.Request.URL.Path):
			b[len(b)/2] ^= 1
		}
		res.Body = io.NopCloser(bytes.NewReader(b)) // the header still says how much there was
	}
	return nil
}

// isBody says whether a path ends in the name of a body's object.
func isBody(path string) bool {
	dir, file := filepath.Split(path)
	_, ok := pool.ParseName(filepath.Base(dir) + "/" + file)
	return ok
}
