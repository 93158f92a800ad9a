package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"pillarbox/mon"
	"pillarbox/objstore"
	"pillarbox/objstore/s3"
)

// s3Users are the monitors' users, as they were a moment ago.
type s3Users struct {
	fetch func(context.Context) ([]mon.S3User, error)

	mu    sync.Mutex // held while they are fetched
	at    time.Time
	byID  map[string]*s3.User
	byKey map[string]s3Secret
}

type s3Secret struct {
	user   *s3.User
	secret string
}

// look finds something among the users. What is not found may be new.
func (u *s3Users) look(ctx context.Context, found func() bool) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	age := time.Since(u.at)
	if age < s3UsersFresh && (found() || age < time.Second/5) {
		return nil
	}
	list, err := u.fetch(ctx)
	if err != nil {
		if u.byID != nil && age < 10*s3UsersFresh && found() {
			return nil // the monitors will be back
		}
		return fmt.Errorf("ask for the S3 users: %w: %w", objstore.Unavailable, err)
	}
	u.at, u.byID, u.byKey = time.Now(), map[string]*s3.User{}, map[string]s3Secret{}
	for _, m := range list {
		user := &s3.User{ID: m.ID, Name: m.Name, Email: m.Email, Uid: m.Uid, Gid: m.Gid, Suspended: m.Suspended, Grants: m.Grants, Quota: m.Quota}
		u.byID[m.ID] = user
		for access, secret := range m.Keys {
			u.byKey[access] = s3Secret{user, secret}
		}
	}
	found()
	return nil
}

func (u *s3Users) ByKey(ctx context.Context, key string) (*s3.User, string, error) {
	var k s3Secret
	if err := u.look(ctx, func() (ok bool) { k, ok = u.byKey[key]; return ok }); err != nil {
		return nil, "", err
	}
	if k.user == nil {
		return nil, "", s3.ErrNoKey
	}
	return k.user, k.secret, nil
}

func (u *s3Users) ByID(ctx context.Context, id string) (user *s3.User, err error) {
	if err = u.look(ctx, func() bool { user = u.byID[id]; return user != nil }); err == nil && user == nil {
		err = s3.ErrNoUser
	}
	return user, err
}

func (u *s3Users) ByEmail(ctx context.Context, email string) (user *s3.User, err error) {
	err = u.look(ctx, func() bool {
		user = nil
		for _, o := range u.byID {
			if o.Email != "" && strings.EqualFold(o.Email, email) {
				user = o
			}
		}
		return user != nil
	})
	if err == nil && user == nil {
		err = s3.ErrNoUser
	}
	return user, err
}
