package s3

import (
	"net/http"
	"slices"
)

// operation is one of S3's. The first in the table that fits a request is it.
type operation struct {
	method string
	level  level
	sub    string // a query parameter, or a header with a capital letter, that must be there; empty: none
	name   string
	action string     // of policies; empty: the handler asks
	perm   permission // what an ACL must give on the bucket; ownerOnly; empty: the handler asks
	do     func(*request) error
}

type level uint8

const (
	onService level = iota
	onBucket
	onObject
)

var operations []operation

func init() {
	operations = []operation{
		{"GET", onService, "", "ListBuckets", "", "", (*request).listBuckets},

		{"GET", onBucket, "location", "GetBucketLocation", "s3:GetBucketLocation", permRead, (*request).getLocation},
		{"GET", onBucket, "acl", "GetBucketAcl", "s3:GetBucketAcl", permReadACP, (*request).getBucketACL},
		{"PUT", onBucket, "acl", "PutBucketAcl", "s3:PutBucketAcl", permWriteACP, (*request).putBucketACL},
		{"GET", onBucket, "policyStatus", "GetBucketPolicyStatus", "s3:GetBucketPolicyStatus", ownerOnly, (*request).getPolicyStatus},
		{"GET", onBucket, "policy", "GetBucketPolicy", "s3:GetBucketPolicy", ownerOnly, (*request).getPolicy},
		{"PUT", onBucket, "policy", "PutBucketPolicy", "s3:PutBucketPolicy", ownerOnly, (*request).putPolicy},
		{"DELETE", onBucket, "policy", "DeleteBucketPolicy", "s3:DeleteBucketPolicy", ownerOnly, (*request).deletePolicy},
		{"GET", onBucket, "publicAccessBlock", "GetPublicAccessBlock", "s3:GetBucketPublicAccessBlock", ownerOnly, (*request).getBlock},
		{"PUT", onBucket, "publicAccessBlock", "PutPublicAccessBlock", "s3:PutBucketPublicAccessBlock", ownerOnly, (*request).putBlock},
		{"DELETE", onBucket, "publicAccessBlock", "DeletePublicAccessBlock", "s3:PutBucketPublicAccessBlock", ownerOnly, (*request).deleteBlock},
		{"GET", onBucket, "ownershipControls", "GetBucketOwnershipControls", "s3:GetBucketOwnershipControls", ownerOnly, (*request).getOwnership},
		{"PUT", onBucket, "ownershipControls", "PutBucketOwnershipControls", "s3:PutBucketOwnershipControls", ownerOnly, (*request).putOwnership},
		{"DELETE", onBucket, "ownershipControls", "DeleteBucketOwnershipControls", "s3:PutBucketOwnershipControls", ownerOnly, (*request).deleteOwnership},
		{"GET", onBucket, "cors", "GetBucketCors", "s3:GetBucketCORS", ownerOnly, (*request).getCORS},
		{"PUT", onBucket, "cors", "PutBucketCors", "s3:PutBucketCORS", ownerOnly, (*request).putCORS},
		{"DELETE", onBucket, "cors", "DeleteBucketCors", "s3:PutBucketCORS", ownerOnly, (*request).deleteCORS},
		{"GET", onBucket, "lifecycle", "GetBucketLifecycleConfiguration", "s3:GetLifecycleConfiguration", ownerOnly, (*request).getLifecycle},
		{"PUT", onBucket, "lifecycle", "PutBucketLifecycleConfiguration", "s3:PutLifecycleConfiguration", ownerOnly, (*request).putLifecycle},
		{"DELETE", onBucket, "lifecycle", "DeleteBucketLifecycle", "s3:PutLifecycleConfiguration", ownerOnly, (*request).deleteLifecycle},
		{"GET", onBucket, "versioning", "GetBucketVersioning", "s3:GetBucketVersioning", ownerOnly, (*request).getVersioning},
		{"PUT", onBucket, "versioning", "PutBucketVersioning", "s3:PutBucketVersioning", ownerOnly, (*request).putVersioning},
		{"GET", onBucket, "object-lock", "GetObjectLockConfiguration", "s3:GetBucketObjectLockConfiguration", ownerOnly, (*request).getLockConfig},
		{"PUT", onBucket, "object-lock", "PutObjectLockConfiguration", "s3:PutBucketObjectLockConfiguration", ownerOnly, (*request).putLockConfig},
		{"GET", onBucket, "tagging", "GetBucketTagging", "s3:GetBucketTagging", ownerOnly, (*request).getBucketTags},
		{"PUT", onBucket, "tagging", "PutBucketTagging", "s3:PutBucketTagging", ownerOnly, (*request).putBucketTags},
		{"DELETE", onBucket, "tagging", "DeleteBucketTagging", "s3:PutBucketTagging", ownerOnly, (*request).deleteBucketTags},
		{"GET", onBucket, "requestPayment", "GetBucketRequestPayment", "s3:GetBucketRequestPayment", ownerOnly, (*request).getRequestPayment},
		{"GET", onBucket, "encryption", "GetBucketEncryption", "s3:GetEncryptionConfiguration", ownerOnly, (*request).getEncryption},
		{"GET", onBucket, "uploads", "ListMultipartUploads", "s3:ListBucketMultipartUploads", permRead, (*request).listUploads},
		{"GET", onBucket, "versions", "ListObjectVersions", "s3:ListBucketVersions", permRead, (*request).listVersions},
		{"POST", onBucket, "delete", "DeleteObjects", "", "", (*request).deleteObjects},
		{"POST", onBucket, "", "PostObject", "", "", (*request).postObject},
		{"GET", onBucket, "list-type", "ListObjectsV2", "s3:ListBucket", permRead, (*request).listObjects},
		{"GET", onBucket, "", "ListObjects", "s3:ListBucket", permRead, (*request).listObjects},
		{"HEAD", onBucket, "", "HeadBucket", "s3:ListBucket", permRead, (*request).headBucket},
		{"PUT", onBucket, "", "CreateBucket", "", "", (*request).createBucket},
		{"DELETE", onBucket, "", "DeleteBucket", "s3:DeleteBucket", ownerOnly, (*request).deleteBucket},

		{"GET", onObject, "acl", "GetObjectAcl", "", "", (*request).getObjectACL},
		{"PUT", onObject, "acl", "PutObjectAcl", "", "", (*request).putObjectACL},
		{"GET", onObject, "tagging", "GetObjectTagging", "", "", (*request).getObjectTags},
		{"PUT", onObject, "tagging", "PutObjectTagging", "", "", (*request).putObjectTags},
		{"DELETE", onObject, "tagging", "DeleteObjectTagging", "", "", (*request).deleteObjectTags},
		{"GET", onObject, "retention", "GetObjectRetention", "", "", (*request).getRetention},
		{"PUT", onObject, "retention", "PutObjectRetention", "", "", (*request).putRetention},
		{"GET", onObject, "legal-hold", "GetObjectLegalHold", "", "", (*request).getLegalHold},
		{"PUT", onObject, "legal-hold", "PutObjectLegalHold", "", "", (*request).putLegalHold},
		{"GET", onObject, "attributes", "GetObjectAttributes", "", "", (*request).getAttributes},
		{"POST", onObject, "uploads", "CreateMultipartUpload", "", "", (*request).createUpload},
		{"GET", onObject, "uploadId", "ListParts", "", "", (*request).listParts},
		{"POST", onObject, "uploadId", "CompleteMultipartUpload", "", "", (*request).completeUpload},
		{"DELETE", onObject, "uploadId", "AbortMultipartUpload", "", "", (*request).abortUpload},
		{"PUT", onObject, "uploadId", "UploadPart", "", "", (*request).uploadPart},
		{"GET", onObject, "", "GetObject", "", "", (*request).getObject},
		{"HEAD", onObject, "", "HeadObject", "", "", (*request).getObject},
		{"PUT", onObject, "X-Amz-Copy-Source", "CopyObject", "", "", (*request).copyObject},
		{"PUT", onObject, "", "PutObject", "", "", (*request).putObject},
		{"DELETE", onObject, "", "DeleteObject", "", "", (*request).deleteObject},
	}
}

// subresources are all that S3 has: one that the table does not have for a
// method is not offered, rather than taken for the whole bucket or object.
var subresources = []string{
	"accelerate", "acl", "analytics", "attributes", "cors", "delete", "encryption", "intelligent-tiering", "inventory", "legal-hold",
	"lifecycle", "location", "logging", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus",
	"publicAccessBlock", "replication", "requestPayment", "restore", "retention", "select", "tagging", "torrent", "uploadId", "uploads",
	"versioning", "versions", "website", "append", "session", "rename-object",
}

func findOperation(q *request) *operation {
	at := onObject
	switch {
	case q.bucket == "":
		at = onService
	case q.key == "":
		at = onBucket
	}
	sub := ""
	for _, s := range subresources {
		if q.query.Has(s) {
			sub = s
			break
		}
	}
	for i := range operations {
		o := &operations[i]
		if o.method != q.r.Method || o.level != at {
			continue
		}
		switch {
		case o.sub == "":
			if sub == "" {
				return o
			}
		case o.sub[0] >= 'A' && o.sub[0] <= 'Z':
			if sub == "" && q.r.Header.Get(o.sub) != "" {
				return o
			}
		case q.query.Has(o.sub):
			return o
		}
	}
	if sub != "" && slices.Contains([]string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodHead}, q.r.Method) {
		return &operation{name: "Unknown"}
	}
	return nil
}
