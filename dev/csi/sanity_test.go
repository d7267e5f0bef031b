package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
)

// TestSanity runs the conformance suite of the CSI project. It needs root, for mounts and loop devices.
func TestSanity(t *testing.T) {
	directory := t.TempDir()
	store, err := openStore(filepath.Join(directory, "store"))
	if err != nil {
		t.Fatal(err)
	}
	const node = "node-1"
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, &identity{})
	csi.RegisterControllerServer(server, &controllerService{store: store, fallbackNode: node})
	csi.RegisterNodeServer(server, &nodeService{store: store, name: node})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	socket := filepath.Join(directory, "csi.sock")
	go func() {
		if err := serve(ctx, server, socket); err != nil {
			t.Error(err)
		}
	}()
	config := sanity.NewTestConfig()
	config.Address = "unix://" + socket
	config.TargetPath = filepath.Join(directory, "target")
	config.StagingPath = filepath.Join(directory, "staging")
	config.TestVolumeSize = 1 << 30
	config.TestVolumeExpandSize = 2 << 30
	sanity.Test(t, config)
}
