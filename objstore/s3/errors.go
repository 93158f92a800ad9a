package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"net/http"

	"pillarbox/objstore"
)

// Error is a failure as S3 tells it.
type Error struct {
	Code    string
	Message string
	Status  int
	Headers map[string]string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// fail is the error of a code.
func fail(code string) *Error { return failWith(code, "") }

func failWith(code, message string) *Error {
	k, ok := codes[code]
	if !ok {
		k.status = http.StatusBadRequest
	}
	if message == "" {
		message = k.text
	}
	return &Error{Code: code, Message: message, Status: k.status}
}

type codeInfo struct {
	status int
	text   string
}

var codes = map[string]codeInfo{
	"AccessDenied":                         {403, "Access Denied"},
	"AuthorizationHeaderMalformed":         {400, "The authorization header is malformed."},
	"AuthorizationQueryParametersError":    {400, "The query parameters of the authorization are malformed."},
	"BadDigest":                            {400, "The Content-MD5 or checksum value that you specified did not match what the server received."},
	"BucketAlreadyExists":                  {409, "The requested bucket name is not available."},
	"BucketAlreadyOwnedByYou":              {409, "The bucket that you tried to create already exists, and you own it."},
	"BucketNotEmpty":                       {409, "The bucket that you tried to delete is not empty."},
	"EntityTooLarge":                       {400, "Your proposed upload exceeds the maximum allowed object size."},
	"EntityTooSmall":                       {400, "Your proposed upload is smaller than the minimum allowed object size."},
	"ExpiredToken":                         {400, "The provided token has expired."},
	"IllegalLocationConstraintException":   {400, "The location constraint is not this store's."},
	"IncompleteBody":                       {400, "You did not provide the number of bytes specified by the Content-Length HTTP header."},
	"InternalError":                        {500, "An internal error occurred. Try again."},
	"InvalidAccessKeyId":                   {403, "The access key ID that you provided does not exist."},
	"InvalidArgument":                      {400, "Invalid argument."},
	"InvalidBucketName":                    {400, "The specified bucket is not valid."},
	"InvalidBucketState":                   {409, "The request is not valid for the current state of the bucket."},
	"InvalidDigest":                        {400, "The Content-MD5 or checksum value that you specified is not valid."},
	"InvalidLocationConstraint":            {400, "The specified location constraint is not valid."},
	"InvalidObjectState":                   {403, "The operation is not valid for the current state of the object."},
	"InvalidPart":                          {400, "One or more of the specified parts could not be found, or did not match."},
	"InvalidPartNumber":                    {416, "The requested part number is not satisfiable."},
	"InvalidPartOrder":                     {400, "The list of parts was not in ascending order."},
	"InvalidPolicyDocument":                {400, "The content of the form does not meet the conditions specified in the policy document."},
	"InvalidRange":                         {416, "The requested range is not satisfiable."},
	"InvalidRequest":                       {400, "Invalid request."},
	"InvalidRetentionPeriod":               {400, "The retention period is not valid."},
	"InvalidTag":                           {400, "The tag provided was not a valid tag."},
	"InvalidTargetBucketForLogging":        {400, "The target bucket for logging is not valid."},
	"InvalidURI":                           {400, "Couldn't parse the specified URI."},
	"KeyTooLongError":                      {400, "Your key is too long."},
	"MalformedACLError":                    {400, "The XML that you provided was not well formed or did not validate."},
	"MalformedPOSTRequest":                 {400, "The body of your POST request is not well-formed multipart/form-data."},
	"MalformedPolicy":                      {400, "The policy is not valid."},
	"MalformedXML":                         {400, "The XML that you provided was not well formed or did not validate."},
	"MetadataTooLarge":                     {400, "Your metadata headers exceed the maximum allowed metadata size."},
	"MethodNotAllowed":                     {405, "The specified method is not allowed against this resource."},
	"MissingContentLength":                 {411, "You must provide the Content-Length HTTP header."},
	"MissingSecurityHeader":                {400, "Your request is missing a required header."},
	"NoSuchBucket":                         {404, "The specified bucket does not exist."},
	"NoSuchBucketPolicy":                   {404, "The specified bucket does not have a bucket policy."},
	"NoSuchCORSConfiguration":              {404, "The CORS configuration does not exist."},
	"NoSuchKey":                            {404, "The specified key does not exist."},
	"NoSuchLifecycleConfiguration":         {404, "The lifecycle configuration does not exist."},
	"NoSuchObjectLockConfiguration":        {404, "The specified object does not have an object lock configuration."},
	"NoSuchPublicAccessBlockConfiguration": {404, "The public access block configuration was not found."},
	"NoSuchTagSet":                         {404, "There is no tag set associated with the bucket or object."},
	"NoSuchTagSetError":                    {404, "There is no tag set associated with the bucket or object."},
	"NoSuchUpload":                         {404, "The specified multipart upload does not exist."},
	"NoSuchVersion":                        {404, "The specified version does not exist."},
	"NotImplemented":                       {501, "A header or query that you provided implies functionality that is not implemented."},
	"NotModified":                          {304, "Not Modified"},
	"ObjectLockConfigurationNotFoundError": {404, "Object Lock configuration does not exist for this bucket."},
	"OwnershipControlsNotFoundError":       {404, "The bucket ownership controls were not found."},
	"PreconditionFailed":                   {412, "At least one of the preconditions that you specified did not hold."},
	"QuotaExceeded":                        {403, "The quota of the user is exceeded."},
	"RequestTimeTooSkewed":                 {403, "The difference between the request time and the server's time is too large."},
	"RequestTimeout":                       {400, "Your socket connection to the server was not read from or written to within the timeout period."},
	"ServerSideEncryptionConfigurationNotFoundError": {404, "The server side encryption configuration was not found."},
	"ServiceUnavailable":                             {503, "The store cannot be reached. Try again."},
	"SignatureDoesNotMatch":                          {403, "The request signature that was calculated does not match the signature that you provided."},
	"SlowDown":                                       {503, "Reduce your request rate."},
	"InsufficientCapacity":                           {507, "The store is full."},
	"TooManyBuckets":                                 {400, "You have attempted to create more buckets than allowed."},
	"UnexpectedContent":                              {400, "This request does not support content."},
	"UnresolvableGrantByEmailAddress":                {400, "The email address that you provided does not match any account on record."},
	"UserKeyMustBeSpecified":                         {400, "The bucket POST must contain the specified field name. If it is specified, check the order of the fields."},
	"XAmzContentSHA256Mismatch":                      {400, "The provided 'x-amz-content-sha256' header does not match what was computed."},
}

// toError makes any failure one of S3's.
func toError(err error) *Error {
	var e *Error
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &big):
		return fail("EntityTooLarge")
	case errors.Is(err, objstore.NoSpace), errors.Is(err, objstore.Quota):
		return fail("InsufficientCapacity")
	case errors.Is(err, objstore.NoKey):
		return failWith("AccessDenied", "The object is encrypted, and its key is not here.")
	case errors.Is(err, objstore.NameTooLong):
		return fail("KeyTooLongError")
	case errors.Is(err, objstore.TooBig):
		return fail("EntityTooLarge")
	case errors.Is(err, objstore.Unavailable), errors.Is(err, objstore.Fenced), errors.Is(err, context.DeadlineExceeded):
		return fail("ServiceUnavailable")
	case isGone(err):
		return fail("NoSuchKey")
	}
	return fail("InternalError")
}

type errorXML struct {
	XMLName    xml.Name `xml:"Error"`
	Code       string
	Message    string
	BucketName string `xml:",omitempty"`
	Key        string `xml:",omitempty"`
	Resource   string
	RequestId  string
	HostId     string
}
