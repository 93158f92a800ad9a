// Package osdv1 is the generated code of the protobuf package
// pillarbox.osd.v1: wire types for transport only, which osdrpc converts.
package osdv1

//go:generate sh -c "cd ../../.. && protoc -I . -I $(go list -m -f '{{.Dir}}' go.etcd.io/raft/v3)/raftpb --go_out=paths=source_relative:. --go-grpc_out=paths=source_relative:. osd/osdrpc/osdv1/osd.proto"
