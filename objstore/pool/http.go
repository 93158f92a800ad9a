package pool

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"pillarbox/objstore"
)

// idleConns are kept for more requests: each new one costs the time of a greeting.
const idleConns = 64

// HTTPClient is one that trusts the authorities of a file instead of the system's,
// if there is one.
func HTTPClient(caFile string) (*http.Client, error) {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxIdleConnsPerHost = idleConns
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authority: %s holds no certificate: %w", caFile, objstore.Invalid)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	return &http.Client{Transport: tr}, nil
}

// Discreet takes the query from the address in an error of a request: it may hold a
// signature, which must not get into logs.
func Discreet(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		if u, perr := url.Parse(e.URL); perr == nil {
			u.RawQuery, u.User = "", nil
			e.URL = u.String()
		} else {
			e.URL = "the store"
		}
	}
	return err
}
