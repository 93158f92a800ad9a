package provider

import (
	"os/exec"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Azurite's account, the same everywhere.
const (
	azuriteAccount = "devstoreaccount1"
	azuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Azurite starts one with a container, and returns the settings of a pool in it.
func Azurite(t *testing.T) (map[string]string, *container.Client) {
	t.Helper()
	main := cached(t, "azurite/node_modules/azurite/dist/src/blob/main.js")
	addr := serve(t, `successfully listens on (http://\S+)`, exec.Command("node", main,
		"--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"))
	settings := map[string]string{"account": azuriteAccount, "account_key": azuriteKey, "endpoint": addr + "/" + azuriteAccount, "container": "bodies"}
	key, err := container.NewSharedKeyCredential(azuriteAccount, azuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := container.NewClientWithSharedKeyCredential(settings["endpoint"]+"/bodies", key, nil)
	if err == nil {
		_, err = c.Create(t.Context(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return settings, c
}
