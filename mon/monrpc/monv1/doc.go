// Package monv1 is the generated code of the monitors' service.
package monv1

//go:generate sh -c "cd ../../.. && protoc -I . --go_out=paths=source_relative:. --go-grpc_out=paths=source_relative:. mon/monrpc/monv1/mon.proto"
