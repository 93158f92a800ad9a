package mon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"pillarbox/mon/pki"
	"pillarbox/objstore"
)

const (
	keyCA       = "pillarbox/ca"
	prefixToken = "pillarbox/token/"
)

// token is what the monitors keep of one: whom it may make, and until when.
type token struct {
	Role    pki.Role  `json:"role"`
	Name    string    `json:"name,omitempty"` // empty for OSDs, whose number is allotted
	Expires time.Time `json:"expires"`
}

// storedCA is the authority as the monitors keep it. Whoever has a monitor's
// disk has it.
type storedCA struct {
	Cert []byte `json:"cert"`
	Key  []byte `json:"key"`
}

// CA is the cluster's certificate authority, made on first use.
func (m *Monitor) CA(ctx context.Context) (*pki.CA, error) {
	for {
		res, err := m.client.Get(ctx, keyCA)
		if err != nil {
			return nil, fmt.Errorf("read the certificate authority: %w", m.cause(err))
		}
		if len(res.Kvs) > 0 {
			b, err := unseal(keyCA, res.Kvs[0].Value)
			if err != nil {
				return nil, fmt.Errorf("read the certificate authority: %w", err)
			}
			var s storedCA
			if err := json.Unmarshal(b, &s); err != nil {
				return nil, fmt.Errorf("read the certificate authority: %w: %w", objstore.Corrupt, err)
			}
			return pki.ParseCA(s.Cert, s.Key)
		}
		cm, err := m.Map(ctx)
		if err != nil {
			return nil, err
		}
		ca, err := pki.NewCA(cm.FSID)
		if err != nil {
			return nil, err
		}
		var s storedCA
		if s.Cert, s.Key, err = ca.PEM(); err != nil {
			return nil, err
		}
		b, err := json.Marshal(s)
		if err != nil {
			return nil, fmt.Errorf("encode the certificate authority: %w", err)
		}
		if _, err := m.swap(ctx, keyCA, 0, b); err != nil {
			return nil, fmt.Errorf("keep the certificate authority: %w", err)
		}
	}
}

// KeepCA makes an authority the cluster's, which must have none yet.
func (m *Monitor) KeepCA(ctx context.Context, ca *pki.CA) error {
	var s storedCA
	var err error
	if s.Cert, s.Key, err = ca.PEM(); err != nil {
		return err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the certificate authority: %w", err)
	}
	ok, err := m.swap(ctx, keyCA, 0, b)
	if err == nil && !ok {
		err = fmt.Errorf("there is one: %w", objstore.Exist)
	}
	if err != nil {
		return fmt.Errorf("keep the certificate authority: %w", err)
	}
	return nil
}

// IssueBy makes credentials for an identity, by an authority. A monitor's show
// the authority, too, for those who know only its fingerprint.
func IssueBy(ca *pki.CA, id pki.Identity) (*pki.Credentials, error) {
	key, request, err := pki.Request()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(request, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", objstore.Invalid, err)
	}
	caCert, _, err := ca.PEM()
	if err != nil {
		return nil, err
	}
	if id.Role == pki.Mon {
		cert = slices.Concat(cert, caCert)
	}
	return &pki.Credentials{CA: caCert, Cert: cert, Key: key}, nil
}

// Issue makes credentials for an identity.
func (m *Monitor) Issue(ctx context.Context, id pki.Identity) (*pki.Credentials, error) {
	key, request, err := pki.Request()
	if err != nil {
		return nil, err
	}
	cert, ca, err := m.sign(ctx, request, id)
	if err != nil {
		return nil, err
	}
	return &pki.Credentials{CA: ca, Cert: cert, Key: key}, nil
}

// sign makes a certificate; a monitor's shows the authority with it, for those
// who know only its fingerprint.
func (m *Monitor) sign(ctx context.Context, request []byte, id pki.Identity) (cert, caCert []byte, err error) {
	ca, err := m.CA(ctx)
	if err != nil {
		return nil, nil, err
	}
	if cert, err = ca.Sign(request, id); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", objstore.Invalid, err)
	}
	if caCert, _, err = ca.PEM(); err != nil {
		return nil, nil, err
	}
	if id.Role == pki.Mon {
		cert = slices.Concat(cert, caCert)
	}
	return cert, caCert, nil
}

// NewToken makes a one-time token for a role, and a name unless it is an OSD's.
func (m *Monitor) NewToken(ctx context.Context, role pki.Role, name string, ttl time.Duration) (pki.Token, error) {
	switch {
	case role == pki.OSD && name != "":
		return pki.Token{}, fmt.Errorf("an OSD's number is allotted when it joins, not named: %w", objstore.Invalid)
	case role != pki.OSD:
		if role == pki.Admin && name == "" {
			name = "admin"
		}
		if err := (pki.Identity{Role: role, Name: name}).Check(); err != nil {
			return pki.Token{}, fmt.Errorf("%w: %w", objstore.Invalid, err)
		}
	}
	ca, err := m.CA(ctx)
	if err != nil {
		return pki.Token{}, err
	}
	cert, _, err := ca.PEM()
	if err != nil {
		return pki.Token{}, err
	}
	print, err := pki.Fingerprint(cert)
	if err != nil {
		return pki.Token{}, err
	}
	cm, err := m.Map(ctx)
	if err != nil {
		return pki.Token{}, err
	}
	var addrs []string
	for _, mon := range cm.Mons {
		if mon.Addr != "" {
			addrs = append(addrs, mon.Addr)
		}
	}
	if len(addrs) == 0 {
		return pki.Token{}, fmt.Errorf("no monitor has an address to join at: %w", objstore.Unavailable)
	}
	t := pki.NewToken(print, addrs)
	b, err := json.Marshal(token{role, name, time.Now().Add(ttl).UTC()})
	if err != nil {
		return pki.Token{}, fmt.Errorf("encode a token: %w", err)
	}
	// A lease removes what nobody used.
	lease, err := m.client.Grant(ctx, int64(ttl/time.Second)+1)
	if err != nil {
		return pki.Token{}, fmt.Errorf("keep a token: %w", m.cause(err))
	}
	key := prefixToken + t.Hash()
	if _, err := m.client.Put(ctx, key, seal(key, b), clientv3.WithLease(lease.ID)); err != nil {
		return pki.Token{}, fmt.Errorf("keep a token: %w", m.cause(err))
	}
	return t, nil
}

// lookToken is what a token permits. NotPermitted: it does not exist any more.
func (m *Monitor) lookToken(ctx context.Context, hash string) (token, error) {
	key := prefixToken + hash
	res, err := m.client.Get(ctx, key)
	if err != nil {
		return token{}, fmt.Errorf("look for the token: %w", m.cause(err))
	}
	if len(res.Kvs) != 1 {
		return token{}, errNoToken
	}
	b, err := unseal(key, res.Kvs[0].Value)
	if err != nil {
		return token{}, err
	}
	var t token
	if err := json.Unmarshal(b, &t); err != nil {
		return token{}, fmt.Errorf("the token: %w: %w", objstore.Corrupt, err)
	}
	if time.Now().After(t.Expires) {
		return token{}, errNoToken
	}
	return t, nil
}

var errNoToken = fmt.Errorf("the token is unknown, used or expired: %w", objstore.NotPermitted)

// spendToken ends a token: of several that try, one succeeds.
func (m *Monitor) spendToken(ctx context.Context, hash string) error {
	res, err := m.client.Delete(ctx, prefixToken+hash)
	if err != nil {
		return fmt.Errorf("spend the token: %w", m.cause(err))
	}
	if res.Deleted != 1 {
		return errNoToken
	}
	return nil
}
