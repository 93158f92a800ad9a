package s3

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// stored is how many bytes of the disk the store's chunks take.
func (s *site) stored() (n int64) {
	s.t.Helper()
	err := filepath.WalkDir(filepath.Join(s.node.Data, "osd.0/chunks"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// plain makes a request without a signature, to a bucket that is open to all.
func (s *site) plain(method, path string, body []byte, headers ...string) (http.Header, []byte) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.url()+"/"+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("X-Amz-Acl", "public-read-write")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode/100 != 2 {
		s.t.Fatalf("%s %s: %s, %v\n%s", method, path, res.Status, err, got)
	}
	return res.Header, got
}

// upload puts parts, whose sizes need not fit the store's chunks, and completes them.
func (s *site) upload(path string, parts [][]byte, headers ...string) (answer struct{ ETag, ChecksumCRC64NVME string }) {
	s.t.Helper()
	var begun struct{ UploadId string }
	_, b := s.plain("POST", path+"?uploads", nil, headers...)
	if err := xml.Unmarshal(b, &begun); err != nil {
		s.t.Fatal(err)
	}
	doc := "<CompleteMultipartUpload>"
	for i, p := range parts {
		h, _ := s.plain("PUT", fmt.Sprintf("%s?partNumber=%d&uploadId=%s", path, i+1, begun.UploadId), p)
		doc += fmt.Sprintf("<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", i+1, h.Get("ETag"))
	}
	before := s.stored()
	_, b = s.plain("POST", path+"?uploadId="+begun.UploadId, []byte(doc+"</CompleteMultipartUpload>"))
	if grown := s.stored() - before; grown > 4<<20 {
		s.t.Errorf("completing %s stored %d bytes", path, grown)
	}
	if err := xml.Unmarshal(b, &answer); err != nil {
		s.t.Fatal(err)
	}
	return answer
}

// TestSharing: completing uploads and copying within a bucket store nothing anew,
// and what shares bytes goes its own way afterwards.
func TestSharing(t *testing.T) {
	s := newSite(t)
	s.aws("s3api", "create-bucket", "--bucket", "share", "--acl", "public-read-write")
	file := func(name string) string { return filepath.Join(s.node.Mount, "share", name) }
	parts := [][]byte{random(5<<20 + 1), random(9 << 20), random(6<<20 + 333), random(100)}
	want := slices.Concat(parts...)
	made := s.upload("share/big", parts, "X-Amz-Checksum-Algorithm", "CRC64NVME", "X-Amz-Checksum-Type", "FULL_OBJECT")
	s.same(file("big"), want)
	whole := s.upload("share/one", [][]byte{want}, "X-Amz-Checksum-Algorithm", "CRC64NVME")
	if made.ChecksumCRC64NVME != whole.ChecksumCRC64NVME || made.ChecksumCRC64NVME == "" {
		t.Errorf("checksum %q of four parts, %q of one", made.ChecksumCRC64NVME, whole.ChecksumCRC64NVME)
	}
	s.plain("DELETE", "share/one", nil)

	before := s.stored()
	for _, name := range []string{"a/copy", "copy"} {
		s.plain("PUT", "share/"+name, nil, "X-Amz-Copy-Source", "share/big")
		if h, got := s.plain("GET", "share/"+name, nil); h.Get("ETag") != made.ETag || !bytes.Equal(got, want) {
			t.Errorf("%s has ETag %s and %d bytes", name, h.Get("ETag"), len(got))
		}
	}
	if grown := s.stored() - before; grown > 4<<20 {
		t.Errorf("copying stored %d bytes", grown)
	}
	s.plain("DELETE", "share/big", nil)
	f, err := os.OpenFile(file("copy"), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("written on the mount"), 7<<20)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.same(file("a/copy"), want)
	copy(want[7<<20:], "written on the mount")
	s.same(file("copy"), want)
	s.node.Kill9()
	s.node.Unmount()
	s.node.Restart()
	s.same(file("copy"), want)
	s.plain("DELETE", "share/a/copy", nil)
	s.same(file("copy"), want)
	s.node.Term()
	s.node.Fsck()
}
