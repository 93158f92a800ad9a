package mon

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"

	"pillarbox/objstore"
)

// keyS3 holds all S3 users, for the gateways.
const keyS3 = "pillarbox/s3"

// S3User is somebody who may use the S3 gateways. Keys are the secrets of the
// access keys: in clear only as Monitor.S3Keys gives them out.
type S3User struct {
	ID        string            `json:"id"`
	Name      string            `json:"display_name"`
	Email     string            `json:"email,omitempty"`
	Uid       uint32            `json:"uid"` // whom the buckets' files belong to
	Gid       uint32            `json:"gid"`
	Created   time.Time         `json:"created"`
	Suspended bool              `json:"suspended,omitempty"`
	Quota     uint64            `json:"quota_bytes,omitempty"` // of all the user's buckets; 0: no limit
	Grants    map[string]string `json:"grants,omitempty"`      // bucket -> "read" or "write"
	Keys      map[string]string `json:"keys,omitempty"`
}

// S3Key is a new access key, shown once.
type S3Key struct {
	User   string `json:"user"`
	Access string `json:"access_key"`
	Secret string `json:"secret_key"`
}

// s3Table reads all users and the revision of their key; secrets are sealed.
func (m *Monitor) s3Table(ctx context.Context) (map[string]*S3User, int64, error) {
	res, err := m.client.Get(ctx, keyS3)
	if err != nil {
		return nil, 0, fmt.Errorf("read the S3 users: %w", m.cause(err))
	}
	users := map[string]*S3User{}
	if len(res.Kvs) == 0 {
		return users, 0, nil
	}
	b, err := unseal(keyS3, res.Kvs[0].Value)
	if err != nil {
		return nil, 0, fmt.Errorf("read the S3 users: %w", err)
	}
	if err := json.Unmarshal(b, &users); err != nil {
		return nil, 0, fmt.Errorf("read the S3 users: %w: %w", objstore.Corrupt, err)
	}
	return users, res.Kvs[0].ModRevision, nil
}

// changeS3 changes the users with fn, which may be called several times.
func (m *Monitor) changeS3(ctx context.Context, fn func(map[string]*S3User) error) error {
	for {
		users, rev, err := m.s3Table(ctx)
		if err != nil {
			return err
		}
		if err := fn(users); err != nil {
			return err
		}
		b, err := json.Marshal(users)
		if err != nil {
			return fmt.Errorf("encode the S3 users: %w", err)
		}
		if ok, err := m.swap(ctx, keyS3, rev, b); err != nil {
			return fmt.Errorf("keep the S3 users: %w", err)
		} else if ok {
			return nil
		}
	}
}

// s3Cipher seals secrets with a key made of the cluster's CA key, so that a copy
// of the users alone is worth nothing.
func (m *Monitor) s3Cipher(ctx context.Context) (cipher.AEAD, error) {
	ca, err := m.CA(ctx)
	if err != nil {
		return nil, err
	}
	_, pem, err := ca.PEM()
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, pem, nil, "pillarbox s3 secrets", 32)
	if err != nil {
		return nil, fmt.Errorf("key of the S3 secrets: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key of the S3 secrets: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// S3Keys are all users with their secrets in clear, for a gateway.
func (m *Monitor) S3Keys(ctx context.Context) ([]S3User, error) {
	users, _, err := m.s3Table(ctx)
	if err != nil || len(users) == 0 {
		return []S3User{}, err
	}
	c, err := m.s3Cipher(ctx)
	if err != nil {
		return nil, err
	}
	list := []S3User{}
	for _, id := range slices.Sorted(maps.Keys(users)) {
		u := *users[id]
		keys := map[string]string{}
		for access, sealed := range u.Keys {
			b, err := base64.StdEncoding.DecodeString(sealed)
			if err == nil {
				b, err = c.Open(nil, nil, b, []byte(access))
			}
			if err != nil {
				return nil, fmt.Errorf("secret of S3 key %s: %w: %w", access, objstore.Corrupt, err)
			}
			keys[access] = string(b)
		}
		u.Keys = keys
		list = append(list, u)
	}
	return list, nil
}

// KeepS3 takes over users with their secrets in clear, of a store that this one
// continues.
func (m *Monitor) KeepS3(ctx context.Context, list []S3User) error {
	if len(list) == 0 {
		return nil
	}
	c, err := m.s3Cipher(ctx)
	if err != nil {
		return err
	}
	return m.changeS3(ctx, func(users map[string]*S3User) error {
		for _, u := range list {
			keys := map[string]string{}
			for access, secret := range u.Keys {
				keys[access] = sealSecret(c, access, secret)
			}
			u.Keys = keys
			users[u.ID] = &u
		}
		return nil
	})
}

func sealSecret(c cipher.AEAD, access, secret string) string {
	return base64.StdEncoding.EncodeToString(c.Seal(nil, nil, []byte(secret), []byte(access)))
}

// checkS3Name refuses ids of users and access keys that would garble what is
// printed or signed.
func checkS3Name(what, s string) error {
	bad := func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._-$@+", r))
	}
	if s == "" || len(s) > 128 || strings.ContainsFunc(s, bad) {
		return fmt.Errorf("%s %q: letters, digits and ._-$@+, up to 128: %w", what, s, objstore.Invalid)
	}
	return nil
}

// newS3Key makes an access key; the options may say which.
func (m *Monitor) newS3Key(ctx context.Context, user string, options map[string]string) (k S3Key, sealed string, err error) {
	k = S3Key{user, options["access-key"], options["secret-key"]}
	if k.Access == "" {
		k.Access = strings.ToUpper(rand.Text()[:20])
	}
	if k.Secret == "" {
		b := make([]byte, 30)
		rand.Read(b) // never fails
		k.Secret = base64.StdEncoding.EncodeToString(b)
	}
	if err := checkS3Name("access key", k.Access); err != nil {
		return k, "", err
	}
	if len(k.Secret) < 8 || len(k.Secret) > 256 {
		return k, "", fmt.Errorf("a secret key has 8 to 256 characters: %w", objstore.Invalid)
	}
	c, err := m.s3Cipher(ctx)
	if err != nil {
		return k, "", err
	}
	return k, sealSecret(c, k.Access, k.Secret), nil
}

func keyOwner(users map[string]*S3User, access string) *S3User {
	for _, u := range users {
		if _, ok := u.Keys[access]; ok {
			return u
		}
	}
	return nil
}

func findS3User(users map[string]*S3User, id string) (*S3User, error) {
	u := users[id]
	if u == nil {
		return nil, fmt.Errorf("S3 user %q: %w", id, objstore.NotFound)
	}
	return u, nil
}

// cmdS3UserCreate: s3 user create ID; it answers with the user's first key.
func (m *Monitor) cmdS3UserCreate(ctx context.Context, args []string, options map[string]string) (any, error) {
	u := S3User{ID: args[0], Name: options["display-name"], Email: strings.ToLower(options["email"]), Created: time.Now().UTC().Truncate(time.Second)}
	if u.Name == "" {
		u.Name = u.ID
	}
	if err := checkS3Name("user", u.ID); err != nil {
		return nil, err
	}
	if _, err := mail.ParseAddress(u.Email); u.Email != "" && err != nil || len(u.Name) > 256 {
		return nil, fmt.Errorf("display name %q or email %q: %w", u.Name, u.Email, objstore.Invalid)
	}
	for name, id := range map[string]*uint32{"uid": &u.Uid, "gid": &u.Gid} {
		if s := options[name]; s != "" {
			n, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%s %q: must be a number: %w", name, s, objstore.Invalid)
			}
			*id = uint32(n)
		}
	}
	k, sealed, err := m.newS3Key(ctx, u.ID, options)
	if err != nil {
		return nil, err
	}
	u.Keys = map[string]string{k.Access: sealed}
	return k, m.changeS3(ctx, func(users map[string]*S3User) error {
		if users[u.ID] != nil {
			return fmt.Errorf("S3 user %q: %w", u.ID, objstore.Exist)
		}
		for _, o := range users {
			if u.Email != "" && o.Email == u.Email {
				return fmt.Errorf("email %q, of S3 user %q: %w", u.Email, o.ID, objstore.Exist)
			}
		}
		if keyOwner(users, k.Access) != nil {
			return fmt.Errorf("access key %q: %w", k.Access, objstore.Exist)
		}
		users[u.ID] = &u
		return nil
	})
}

// cmdS3UserList: s3 user ls; access keys come without their secrets.
func (m *Monitor) cmdS3UserList(ctx context.Context, _ []string, _ map[string]string) (any, error) {
	users, _, err := m.s3Table(ctx)
	if err != nil {
		return nil, err
	}
	list := []S3User{}
	for _, id := range slices.Sorted(maps.Keys(users)) {
		u := *users[id]
		keys := map[string]string{}
		for access := range u.Keys {
			keys[access] = ""
		}
		u.Keys = keys
		list = append(list, u)
	}
	return list, nil
}

// onS3User changes one user.
func onS3User(fn func(users map[string]*S3User, u *S3User, args []string) error) func(*Monitor, context.Context, []string, map[string]string) (any, error) {
	return func(m *Monitor, ctx context.Context, args []string, _ map[string]string) (any, error) {
		return Changed{}, m.changeS3(ctx, func(users map[string]*S3User) error {
			u, err := findS3User(users, args[0])
			if err != nil {
				return err
			}
			return fn(users, u, args)
		})
	}
}

// cmdS3UserRemove: s3 user rm ID; doing it again changes nothing.
func (m *Monitor) cmdS3UserRemove(ctx context.Context, args []string, _ map[string]string) (any, error) {
	return Changed{}, m.changeS3(ctx, func(users map[string]*S3User) error { delete(users, args[0]); return nil })
}

// cmdS3Grant: s3 grant BUCKET USER read|write|none
func (m *Monitor) cmdS3Grant(ctx context.Context, args []string, _ map[string]string) (any, error) {
	if err := objstore.CheckName(args[0]); err != nil {
		return nil, fmt.Errorf("bucket %q: %w", args[0], err)
	}
	if !slices.Contains([]string{"read", "write", "none"}, args[2]) {
		return nil, fmt.Errorf("%q: must be read, write or none: %w", args[2], objstore.Invalid)
	}
	return Changed{}, m.changeS3(ctx, func(users map[string]*S3User) error {
		u, err := findS3User(users, args[1])
		if err != nil {
			return err
		}
		if u.Grants == nil {
			u.Grants = map[string]string{}
		}
		if u.Grants[args[0]] = args[2]; args[2] == "none" {
			delete(u.Grants, args[0])
		}
		return nil
	})
}

// cmdS3Quota: s3 quota set USER BYTES
func (m *Monitor) cmdS3Quota(ctx context.Context, args []string, _ map[string]string) (any, error) {
	n, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("quota %q: must be a number of bytes, 0 for no limit: %w", args[1], objstore.Invalid)
	}
	return Changed{}, m.changeS3(ctx, func(users map[string]*S3User) error {
		u, err := findS3User(users, args[0])
		if err == nil {
			u.Quota = n
		}
		return err
	})
}

// cmdS3KeyCreate: s3 key create USER
func (m *Monitor) cmdS3KeyCreate(ctx context.Context, args []string, options map[string]string) (any, error) {
	k, sealed, err := m.newS3Key(ctx, args[0], options)
	if err != nil {
		return nil, err
	}
	return k, m.changeS3(ctx, func(users map[string]*S3User) error {
		u, err := findS3User(users, args[0])
		if err != nil {
			return err
		}
		if keyOwner(users, k.Access) != nil {
			return fmt.Errorf("access key %q: %w", k.Access, objstore.Exist)
		}
		if u.Keys == nil {
			u.Keys = map[string]string{}
		}
		u.Keys[k.Access] = sealed
		return nil
	})
}

// cmdS3KeyRemove: s3 key rm ACCESS_KEY; doing it again changes nothing.
func (m *Monitor) cmdS3KeyRemove(ctx context.Context, args []string, _ map[string]string) (any, error) {
	return Changed{}, m.changeS3(ctx, func(users map[string]*S3User) error {
		if u := keyOwner(users, args[0]); u != nil {
			delete(u.Keys, args[0])
		}
		return nil
	})
}
