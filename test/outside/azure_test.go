package outside

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/azurepool"
	"pillarbox/objstore/pool/pooltest"
	"pillarbox/test/provider"
)

func openAzure(t *testing.T, settings map[string]string, more map[string]string) pool.Store {
	t.Helper()
	settings = maps.Clone(settings)
	maps.Copy(settings, more)
	if err := azurepool.Type().Check(settings); err != nil {
		t.Fatal(err)
	}
	s, err := azurepool.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAzure(t *testing.T) {
	settings, c := provider.Azurite(t)
	mail := maps.Clone(settings)
	mail["prefix"] = "mail"
	mailOn(t, "azure", mail)
	pooltest.Run(t, openAzure(t, settings, map[string]string{"prefix": "one"}), openAzure(t, settings, map[string]string{"prefix": "one-more"}))

	// With a shared access signature instead of the account's key.
	url, err := c.GetSASURL(sas.ContainerPermissions{Read: true, Write: true, Delete: true, List: true}, time.Now().Add(24*time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	signed := map[string]string{"prefix": "signed", "account_key": "", "sas": url[len(c.URL()):], "access_tier": "Cool"}
	s := openAzure(t, settings, signed)
	p := make([]byte, 1)
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Error(err)
	}
	if err := s.Get(t.Context(), "a/b", 0, p); err != nil || p[0] != 'x' {
		t.Errorf("%q, %v", p, err)
	}
	if err := s.Delete(t.Context(), []string{"a/b"}); err != nil {
		t.Error(err)
	}
	left := 0
	err = pool.Each(t.Context(), s, func(pool.Object) error { left++; return nil })
	if err != nil || left > 0 {
		t.Errorf("%d left, %v", left, err)
	}
	noSecrets(t, signed["sas"], func(ctx context.Context) error { return s.Put(ctx, "a/b", p) })
}
