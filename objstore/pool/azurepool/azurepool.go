// Package azurepool keeps a pool's objects as block blobs in a container of Azure
// Blob Storage.
package azurepool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	deleteBatch = 256 // blobs in a request, as many as Azure takes
	listPage    = 250
)

// Store is a container, or what is below a prefix of it.
type Store struct {
	client *container.Client
	name   string // of the container
	prefix string
	tier   *blob.AccessTier
}

var _ pool.Store = (*Store)(nil)

// Type is the driver. Either account_key or sas, a shared access signature for the
// container, says who we are.
func Type() pool.Type {
	return pool.Type{
		Settings: map[string]pool.Setting{
			"account": {Needed: true}, "container": {Needed: true}, "prefix": {Check: pool.Prefix}, "endpoint": {}, "ca_file": {},
			"access_tier": {Check: pool.OneOf("Hot", "Cool", "Cold")}, // of an archived blob nothing can be read
			"account_key": {Secret: true}, "sas": {Secret: true},
		},
		Open: func(_ context.Context, settings map[string]string) (pool.Store, error) { return Open(settings) },
	}
}

// Open makes a Store of settings, which are those of Type.
func Open(settings map[string]string) (*Store, error) {
	endpoint := strings.TrimSuffix(settings["endpoint"], "/")
	if endpoint == "" {
		endpoint = "https://" + settings["account"] + ".blob.core.windows.net"
	}
	client, err := pool.HTTPClient(settings["ca_file"])
	if err != nil {
		return nil, err
	}
	opt := &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Retry: policy.RetryOptions{MaxRetries: -1}, Transport: client, Telemetry: policy.TelemetryOptions{Disabled: true},
	}}
	s := &Store{name: settings["container"], prefix: pool.Below(settings["prefix"])}
	if t := settings["access_tier"]; t != "" {
		s.tier = to.Ptr(blob.AccessTier(t))
	}
	url := endpoint + "/" + s.name
	switch {
	case settings["account_key"] != "":
		key, err := container.NewSharedKeyCredential(settings["account"], settings["account_key"])
		if err != nil {
			return nil, fmt.Errorf("account_key: it is not one of Azure's: %w", objstore.Invalid)
		}
		s.client, err = container.NewClientWithSharedKeyCredential(url, key, opt)
		return s, err
	case settings["sas"] != "":
		s.client, err = container.NewClientWithNoCredential(url+"?"+strings.TrimPrefix(settings["sas"], "?"), opt)
		return s, pool.Discreet(err)
	}
	return nil, fmt.Errorf("neither account_key nor sas: %w", objstore.NotPermitted)
}

// fail gives an error of the SDK its kind, and one line.
func fail(what, name string, err error) error {
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) {
		return fmt.Errorf("%s %s: %w: %w", what, name, objstore.Unavailable, pool.Discreet(err))
	}
	said := fmt.Errorf("status %d, %s", answer.StatusCode, answer.ErrorCode)
	if answer.RawResponse == nil { // of one blob of many
		return fmt.Errorf("%s %s: %w", what, name, pool.StatusError(answer.StatusCode, nil, said))
	}
	return fmt.Errorf("%s %s: %w", what, name, pool.StatusError(answer.StatusCode, answer.RawResponse.Header, said))
}

// Put implements pool.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	body := streaming.NopCloser(bytes.NewReader(data))
	_, err := s.client.NewBlockBlobClient(s.prefix+name).Upload(ctx, body, &blockblob.UploadOptions{Tier: s.tier})
	if err != nil {
		return fail("put", name, err)
	}
	return nil
}

// Get implements pool.Store.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	out, err := s.client.NewBlobClient(s.prefix+name).DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: int64(len(p))}})
	if err != nil {
		return fail("get", name, err)
	}
	defer out.Body.Close()
	if out.ContentLength == nil || *out.ContentLength != int64(len(p)) {
		return fmt.Errorf("get %s: other than the %d bytes at %d that were asked for: %w", name, len(p), off, objstore.Corrupt)
	}
	if _, err := io.ReadFull(out.Body, p); err != nil {
		return fmt.Errorf("get %s: the body was cut on its way: %w: %w", name, objstore.Unavailable, pool.Discreet(err))
	}
	return nil
}

// Delete implements pool.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	for batch := range slices.Chunk(names, deleteBatch) {
		if err := s.deleteBatch(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) deleteBatch(ctx context.Context, names []string) error {
	batch, err := s.client.NewBatchBuilder()
	if err != nil {
		return fail("delete", s.name, err)
	}
	for _, name := range names {
		if err := batch.Delete(s.prefix+name, nil); err != nil {
			return fail("delete", name, err)
		}
	}
	out, err := s.client.SubmitBatch(ctx, batch, nil)
	if err != nil {
		return fail("delete", fmt.Sprint(len(names), " objects"), err)
	}
	if len(out.Responses) != len(names) {
		return fmt.Errorf("delete %d objects: the store answered for %d: %w", len(names), len(out.Responses), objstore.Unavailable)
	}
	for _, r := range out.Responses {
		if r.Error != nil && !bloberror.HasCode(r.Error, bloberror.BlobNotFound) {
			return fail("delete", "one of many objects", r.Error)
		}
	}
	return nil
}

// List implements pool.Store.
func (s *Store) List(ctx context.Context, from string) ([]pool.Object, string, error) {
	opt := &container.ListBlobsFlatOptions{Prefix: &s.prefix, MaxResults: to.Ptr(int32(listPage))}
	if from != "" {
		opt.Marker = &from
	}
	page, err := s.client.NewListBlobsFlatPager(opt).NextPage(ctx)
	if err != nil {
		return nil, "", fail("list", s.name, err)
	}
	if page.Segment == nil {
		return nil, "", fmt.Errorf("list %s: an answer without a list: %w", s.name, objstore.Unavailable)
	}
	list := make([]pool.Object, 0, len(page.Segment.BlobItems))
	for _, b := range page.Segment.BlobItems {
		if b.Name == nil || b.Properties == nil || b.Properties.ContentLength == nil || b.Properties.LastModified == nil {
			return nil, "", fmt.Errorf("list %s: an object without name, length or time: %w", s.name, objstore.Unavailable)
		}
		list = append(list, pool.Object{Name: strings.TrimPrefix(*b.Name, s.prefix), Size: *b.Properties.ContentLength, Modified: *b.Properties.LastModified})
	}
	if page.NextMarker == nil {
		return list, "", nil
	}
	return list, *page.NextMarker, nil
}
