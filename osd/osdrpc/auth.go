package osdrpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"pillarbox/objstore"
)

// Roles, the organizational units of certificates, that may call an OSD.
const (
	roleOSD    = "osd"
	roleClient = "client"
	roleAdmin  = "admin"
)

// certRole says who a verified certificate is. NotPermitted.
func certRole(s tls.ConnectionState) (role, name string, err error) {
	if len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) == 0 {
		return "", "", fmt.Errorf("no verified certificate: %w", objstore.NotPermitted)
	}
	subject := s.VerifiedChains[0][0].Subject
	if len(subject.OrganizationalUnit) != 1 || subject.CommonName == "" {
		return "", "", fmt.Errorf("certificate %q is of no role: %w", subject, objstore.NotPermitted)
	}
	return subject.OrganizationalUnit[0], subject.CommonName, nil
}

// osdOf is the OSD that a certificate's name stands for.
func osdOf(name string) (int, error) {
	digits, ok := strings.CutPrefix(name, "osd.")
	id, err := strconv.ParseUint(digits, 10, 31)
	if !ok || err != nil || name != osdName(int(id)) {
		return 0, fmt.Errorf("%q is not an OSD: %w", name, objstore.NotPermitted)
	}
	return int(id), nil
}

func osdName(id int) string { return "osd." + strconv.Itoa(id) }

// caller says who makes a call. NotPermitted.
func caller(ctx context.Context) (role, name string, err error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return "", "", fmt.Errorf("call without a connection: %w", objstore.NotPermitted)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return "", "", fmt.Errorf("call without TLS: %w", objstore.NotPermitted)
	}
	return certRole(info.State)
}

// authorize refuses a call of a role that may not make it. NotPermitted.
func authorize(ctx context.Context, service string) error {
	role, name, err := caller(ctx)
	if err != nil {
		return err
	}
	switch role {
	case roleOSD:
		return nil
	case roleClient, roleAdmin:
		if service == clientService || service == adminService && role == roleAdmin {
			return nil
		}
	}
	return fmt.Errorf("%s %q may not call %s: %w", role, name, service, objstore.NotPermitted)
}

// serverTLS is the caller's configuration with what an OSD insists on.
func serverTLS(cfg *tls.Config) (*tls.Config, error) {
	if cfg == nil || cfg.ClientCAs == nil && cfg.GetConfigForClient == nil {
		return nil, fmt.Errorf("no certificate authority for clients: %w", objstore.Invalid)
	}
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	return cfg, nil
}

// clientTLS is the caller's configuration, for a connection to one OSD: its
// certificate must be that OSD's. Its address does not matter.
func clientTLS(cfg *tls.Config, id int) (*tls.Config, error) {
	if cfg == nil || cfg.RootCAs == nil {
		return nil, fmt.Errorf("no certificate authority for osd.%d: %w", id, objstore.Invalid)
	}
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	cfg.ServerName = osdName(id)
	// Certificates are verified below, by role and name instead of host name.
	cfg.InsecureSkipVerify = true
	before := cfg.VerifyConnection
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return fmt.Errorf("no certificate: %w", objstore.NotPermitted)
		}
		opt := x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
		for _, c := range s.PeerCertificates[1:] {
			opt.Intermediates.AddCert(c)
		}
		var err error
		if s.VerifiedChains, err = s.PeerCertificates[0].Verify(opt); err != nil {
			return fmt.Errorf("certificate of %s: %w", osdName(id), err)
		}
		role, name, err := certRole(s)
		if err != nil {
			return err
		}
		if role != roleOSD || name != osdName(id) {
			return fmt.Errorf("%s %q where %s was expected: %w", role, name, osdName(id), objstore.NotPermitted)
		}
		if before != nil {
			return before(s)
		}
		return nil
	}
	return cfg, nil
}
