// Package s3pool keeps a pool's objects in a bucket of Amazon S3, or of anything
// that speaks its protocol: Ceph's Object Gateway, MinIO, Pillarbox itself.
package s3pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"pillarbox/objstore"
	"pillarbox/objstore/pool"
)

const (
	deleteBatch = 1000 // objects in a request
	listPage    = 250
)

// Store is a bucket, or what is below a prefix of it.
type Store struct {
	client       *s3.Client
	bucket       string
	prefix       string
	storageClass types.StorageClass
	encryption   types.ServerSideEncryption
}

var _ pool.Store = (*Store)(nil)

// Type is the driver: access_key, secret_key and session_token, or else the SDK's
// usual chain: environment, files, instance role.
func Type() pool.Type {
	return pool.Type{
		Settings: map[string]pool.Setting{
			"endpoint": {}, "bucket": {Needed: true}, "prefix": {Check: pool.Prefix}, "region": {},
			"path_style": {Check: pool.OneOf("true", "false")}, "storage_class": {}, "sse": {}, "ca_file": {}, "profile": {},
			"access_key": {Secret: true}, "secret_key": {Secret: true}, "session_token": {Secret: true},
		},
		Open: func(ctx context.Context, settings map[string]string) (pool.Store, error) { return Open(ctx, settings) },
	}
}

// Open makes a Store of settings, which are those of Type.
func Open(ctx context.Context, settings map[string]string) (*Store, error) {
	region := settings["region"]
	if region == "" && settings["endpoint"] != "" {
		region = "us-east-1"
	}
	options := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if region != "" {
		options = append(options, config.WithRegion(region))
	}
	if p := settings["profile"]; p != "" {
		options = append(options, config.WithSharedConfigProfile(p))
	}
	if key := settings["access_key"]; key != "" {
		options = append(options, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(key, settings["secret_key"], settings["session_token"])))
	}
	if path := settings["ca_file"]; path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		options = append(options, config.WithCustomCABundle(bytes.NewReader(pem)))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("settings of S3: %w", err)
	}
	s := &Store{
		bucket: settings["bucket"], prefix: pool.Below(settings["prefix"]), storageClass: types.StorageClass(settings["storage_class"]), encryption: types.ServerSideEncryption(settings["sse"]),
	}
	s.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		if e := settings["endpoint"]; e != "" {
			o.BaseEndpoint = aws.String(e)
			// Stores of others often lack the newer checksums; ours is in the body.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
		o.UsePathStyle = settings["path_style"] == "true"
	})
	return s, nil
}

func (s *Store) key(name string) *string { return aws.String(s.prefix + name) }

// fail gives an error of the SDK its kind.
func fail(what, name string, err error) error {
	var answer *smithyhttp.ResponseError
	var told smithy.APIError
	switch {
	case errors.As(err, &told) && (told.ErrorCode() == "SlowDown" || told.ErrorCode() == "RequestLimitExceeded"):
		var after time.Duration
		if errors.As(err, &answer) {
			after = pool.RetryAfter(answer.HTTPResponse().Header)
		}
		err = &pool.Throttled{After: after, Err: err}
	case errors.As(err, &answer) && answer.HTTPResponse() != nil:
		err = pool.StatusError(answer.HTTPStatusCode(), answer.HTTPResponse().Header, err)
	default:
		err = fmt.Errorf("%w: %w", objstore.Unavailable, err)
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

// Put implements pool.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.bucket, Key: s.key(name), Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))),
		StorageClass: s.storageClass, ServerSideEncryption: s.encryption,
	})
	if err != nil {
		return fail("put", name, err)
	}
	return nil
}

// Get implements pool.Store.
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: &s.bucket, Key: s.key(name), Range: aws.String(fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)),
	})
	if err != nil {
		return fail("get", name, err)
	}
	defer out.Body.Close()
	if n := aws.ToInt64(out.ContentLength); n != int64(len(p)) {
		return fmt.Errorf("get %s: %d bytes at %d where %d were asked for: %w", name, n, off, len(p), objstore.Corrupt)
	}
	if _, err := io.ReadFull(out.Body, p); err != nil {
		return fmt.Errorf("get %s: the body was cut on its way: %w: %w", name, objstore.Unavailable, err)
	}
	return nil
}

// Delete implements pool.Store.
func (s *Store) Delete(ctx context.Context, names []string) error {
	for len(names) > 0 {
		n := min(len(names), deleteBatch)
		list := make([]types.ObjectIdentifier, n)
		for i, name := range names[:n] {
			list[i].Key = s.key(name)
		}
		names = names[n:]
		out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.bucket, Delete: &types.Delete{Objects: list, Quiet: aws.Bool(true)}})
		if err != nil {
			return fail("delete", fmt.Sprint(n, " objects"), err)
		}
		for _, e := range out.Errors {
			if aws.ToString(e.Code) != "NoSuchKey" {
				return deleteError(e)
			}
		}
	}
	return nil
}

// deleteError is why one object of many was not removed.
func deleteError(e types.Error) error {
	kind := objstore.Unavailable
	if aws.ToString(e.Code) == "AccessDenied" {
		kind = objstore.NotPermitted
	}
	err := fmt.Errorf("delete %s: %w: %s: %s", aws.ToString(e.Key), kind, aws.ToString(e.Code), aws.ToString(e.Message))
	if aws.ToString(e.Code) == "SlowDown" {
		return &pool.Throttled{Err: err}
	}
	return err
}

// List implements pool.Store.
func (s *Store) List(ctx context.Context, from string) ([]pool.Object, string, error) {
	in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &s.prefix, MaxKeys: aws.Int32(listPage)}
	if from != "" {
		in.ContinuationToken = &from
	}
	page, err := s.client.ListObjectsV2(ctx, in)
	if err != nil {
		return nil, "", fail("list", s.bucket, err)
	}
	list := make([]pool.Object, len(page.Contents))
	for i, o := range page.Contents {
		list[i] = pool.Object{Name: strings.TrimPrefix(aws.ToString(o.Key), s.prefix), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}
	}
	return list, aws.ToString(page.NextContinuationToken), nil
}
