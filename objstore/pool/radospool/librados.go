//go:build rados

package radospool

// #cgo LDFLAGS: -lrados
// #include <rados/librados.h>
// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"pillarbox/objstore"
)

// Ceph's clients wait for ever by default. These make a request fail about when it
// would be given up anyway.
var patience = map[string]string{"rados_osd_op_timeout": "30", "rados_mon_op_timeout": "30", "client_mount_timeout": "20"}

// failure is the error of a call that returned a negative errno.
func failure(what string, ret C.int) error {
	if ret >= 0 {
		return nil
	}
	errno := syscall.Errno(-ret)
	kind := objstore.Unavailable
	switch errno {
	case syscall.ENOENT:
		kind = objstore.NotFound
	case syscall.EPERM, syscall.EACCES:
		kind = objstore.NotPermitted
	case syscall.ENOSPC, syscall.EDQUOT:
		kind = objstore.NoSpace
	}
	return fmt.Errorf("%s: %w: %w", what, kind, errno)
}

// text is a string for C until free.
type text struct{ c *C.char }

func newText(s string) text { return text{C.CString(s)} }
func (t text) free()        { C.free(unsafe.Pointer(t.c)) }

// connect connects to the cluster that settings name and opens the pool.
func connect(settings map[string]string) (C.rados_ioctx_t, error) {
	user := settings["user"]
	if user == "" {
		user = "client.admin"
	}
	var cluster C.rados_t
	cname, cuser := newText("ceph"), newText(user)
	defer cname.free()
	defer cuser.free()
	if err := failure("set up librados", C.rados_create2(&cluster, cname.c, cuser.c, 0)); err != nil {
		return nil, err
	}
	io, err := open(cluster, settings)
	if err != nil {
		C.rados_shutdown(cluster)
		if errors.Is(err, objstore.NotFound) { // which would be taken for an object's
			err = fmt.Errorf("%w: %v", objstore.Invalid, err)
		}
		return nil, err
	}
	return io, nil
}

func open(cluster C.rados_t, settings map[string]string) (C.rados_ioctx_t, error) {
	var path *C.char // nil: where Ceph looks
	if conf := settings["conf"]; conf != "" {
		t := newText(conf)
		defer t.free()
		path = t.c
	}
	if err := failure("read ceph.conf", C.rados_conf_read_file(cluster, path)); err != nil {
		return nil, err
	}
	options := map[string]string{}
	for name, value := range patience {
		options[name] = value
	}
	if keyring := settings["keyring"]; keyring != "" {
		options["keyring"] = keyring
	}
	for name, value := range options {
		cname, cvalue := newText(name), newText(value)
		err := failure("set "+name, C.rados_conf_set(cluster, cname.c, cvalue.c))
		cname.free()
		cvalue.free()
		if err != nil {
			return nil, err
		}
	}
	if err := failure("connect to Ceph", C.rados_connect(cluster)); err != nil {
		return nil, err
	}
	var io C.rados_ioctx_t
	name, namespace := newText(settings["pool"]), newText(settings["namespace"])
	defer name.free()
	defer namespace.free()
	if err := failure(fmt.Sprintf("open Ceph's pool %q", settings["pool"]), C.rados_ioctx_create(cluster, name.c, &io)); err != nil {
		return nil, err
	}
	C.rados_ioctx_set_namespace(io, namespace.c)
	return io, nil
}

// bytesOf is where C finds a slice's bytes during a call.
func bytesOf(p []byte) *C.char { return (*C.char)(unsafe.Pointer(unsafe.SliceData(p))) }

// write makes an object.
func write(io C.rados_ioctx_t, name string, data []byte) error {
	t := newText(name)
	defer t.free()
	return failure("put "+name, C.rados_write_full(io, t.c, bytesOf(data), C.size_t(len(data))))
}

// read reads what an object has of the bytes from off on, and says how many it has.
func read(io C.rados_ioctx_t, name string, off int64, p []byte) (int, error) {
	t := newText(name)
	defer t.free()
	got := C.rados_read(io, t.c, bytesOf(p), C.size_t(len(p)), C.uint64_t(off))
	return int(got), failure("get "+name, got)
}

func remove(io C.rados_ioctx_t, name string) error {
	t := newText(name)
	defer t.free()
	return failure("delete "+name, C.rados_remove(io, t.c))
}

func stat(io C.rados_ioctx_t, name string) (size int64, modified time.Time, err error) {
	t := newText(name)
	defer t.free()
	var n C.uint64_t
	var at C.time_t
	err = failure("stat "+name, C.rados_stat(io, t.c, &n, &at))
	return int64(n), time.Unix(int64(at), 0), err
}

// objects is how many objects the pool has, in all its namespaces.
func objects(io C.rados_ioctx_t) (int, error) {
	var st C.struct_rados_pool_stat_t
	err := failure("count objects", C.rados_ioctx_pool_stat(io, &st))
	return int(st.num_objects), err
}

// slice lists the names in one of so many parts of the pool's hashes.
func slice(io C.rados_ioctx_t, part, parts int) (names []string, err error) {
	all, end := C.rados_object_list_begin(io), C.rados_object_list_end(io)
	defer C.rados_object_list_cursor_free(io, all)
	defer C.rados_object_list_cursor_free(io, end)
	at, to := C.rados_object_list_begin(io), C.rados_object_list_begin(io)
	defer func() {
		C.rados_object_list_cursor_free(io, at)
		C.rados_object_list_cursor_free(io, to)
	}()
	C.rados_object_list_slice(io, all, end, C.size_t(part), C.size_t(parts), &at, &to)
	for C.rados_object_list_cursor_cmp(io, at, to) < 0 {
		items := make([]C.rados_object_list_item, listBatch)
		n := C.rados_object_list(io, at, to, listBatch, nil, 0, &items[0], &at) // at goes on to the next
		if err := failure("list", n); err != nil {
			return nil, err
		}
		for _, item := range items[:n] {
			names = append(names, C.GoStringN(item.oid, C.int(item.oid_length)))
		}
		C.rados_object_list_free(C.size_t(n), &items[0])
	}
	return names, nil
}
