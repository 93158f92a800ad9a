package s3

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
)

// load makes requests to a bucket that is open to all.
type load struct {
	url    string
	client *http.Client
}

func newLoad(url string) *load {
	return &load{url, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

func (l *load) do(method, key string, body []byte) error {
	req, err := http.NewRequestWithContext(context.Background(), method, l.url+"/"+key, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-Amz-Acl", "public-read-write")
	res, err := l.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != 200 || method == http.MethodGet && n == 0 {
		return fmt.Errorf("%s %s: %s, %d bytes, %w", method, key, res.Status, n, err)
	}
	return nil
}
