// Package types names the types of outside stores that this program knows.
package types

import (
	"pillarbox/objstore/pool"
	"pillarbox/objstore/pool/azurepool"
	"pillarbox/objstore/pool/dropboxpool"
	"pillarbox/objstore/pool/radospool"
	"pillarbox/objstore/pool/s3pool"
	"pillarbox/objstore/pool/swiftpool"
)

// All are the types by their names.
func All() map[string]pool.Type {
	return map[string]pool.Type{
		"azure":   azurepool.Type(),
		"dropbox": dropboxpool.Type(),
		"rados":   radospool.Type(),
		"s3":      s3pool.Type(),
		"swift":   swiftpool.Type(),
	}
}
