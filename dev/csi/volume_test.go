package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const mebibyte = 1 << 20

// fixture is a driver with two nodes on a folder of its own.
type fixture struct {
	*testing.T
	controller *controllerService
	nodes      map[string]*nodeService
	directory  string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	directory := t.TempDir()
	store, err := openStore(filepath.Join(directory, "store"))
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]*nodeService{}
	for _, name := range []string{"node-1", "node-2"} {
		nodes[name] = &nodeService{store: store, name: name}
	}
	return &fixture{T: t, controller: &controllerService{store: store}, nodes: nodes, directory: directory}
}

func capability(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	}
}

var writer = capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER)

func (f *fixture) create(name, kind string, size int64, snapshot string) *csi.Volume {
	f.Helper()
	request := &csi.CreateVolumeRequest{
		Name:               name,
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{writer},
		Parameters:         map[string]string{typeParameter: kind},
		AccessibilityRequirements: &csi.TopologyRequirement{
			Preferred: []*csi.Topology{{Segments: map[string]string{topologyKey: "node-1"}}},
		},
	}
	if snapshot != "" {
		request.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: snapshot},
		}}
	}
	response, err := f.controller.CreateVolume(context.Background(), request)
	if err != nil {
		f.Fatal(err)
	}
	return response.Volume
}

// stage mounts the volume and has it unmounted at the end of the test.
func (f *fixture) stage(node, volume string) (string, error) {
	path := filepath.Join(f.directory, node, volume)
	_, err := f.nodes[node].NodeStageVolume(context.Background(), &csi.NodeStageVolumeRequest{
		VolumeId: volume, StagingTargetPath: path, VolumeCapability: writer,
	})
	if err == nil {
		f.Cleanup(func() { f.unstage(node, volume) })
	}
	return path, err
}

func (f *fixture) mustStage(node, volume string) string {
	f.Helper()
	path, err := f.stage(node, volume)
	if err != nil {
		f.Fatal(err)
	}
	return path
}

func (f *fixture) unstage(node, volume string) {
	f.Helper()
	_, err := f.nodes[node].NodeUnstageVolume(context.Background(), &csi.NodeUnstageVolumeRequest{
		VolumeId: volume, StagingTargetPath: filepath.Join(f.directory, node, volume),
	})
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) refused(err error, code codes.Code, words string) {
	f.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), words) {
		f.Fatalf("want %s with %q, got %v", code, words, err)
	}
}

func fillUp(path string, bytes int) error {
	return os.WriteFile(path, make([]byte, bytes), 0o600)
}

func TestAVolumeIsFullAtItsSizeAndGrowsWhileMounted(t *testing.T) {
	f := newFixture(t)
	volume := f.create("small", typeLocal, 1, "")
	if volume.CapacityBytes != minimumBytes {
		t.Fatalf("a tiny volume has %d bytes", volume.CapacityBytes)
	}
	path := f.mustStage("node-1", volume.VolumeId)
	if err := fillUp(filepath.Join(path, "a"), 400*mebibyte); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("400 MiB fit into 300: %v", err)
	}
	grown, err := f.controller.ControllerExpandVolume(context.Background(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volume.VolumeId, CapacityRange: &csi.CapacityRange{RequiredBytes: 600 * mebibyte},
	})
	if err != nil || !grown.NodeExpansionRequired || grown.CapacityBytes != 600*mebibyte {
		t.Fatalf("grown to %v: %v", grown, err)
	}
	_, err = f.nodes["node-1"].NodeExpandVolume(context.Background(), &csi.NodeExpandVolumeRequest{VolumeId: volume.VolumeId, VolumePath: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := fillUp(filepath.Join(path, "a"), 400*mebibyte); err != nil {
		t.Fatalf("400 MiB do not fit into 600: %v", err)
	}
}

func TestAVolumeThatGrewWhileUnmountedIsLargeAtItsNextMount(t *testing.T) {
	f := newFixture(t)
	volume := f.create("offline", typeLocal, minimumBytes, "")
	_, err := f.controller.ControllerExpandVolume(context.Background(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volume.VolumeId, CapacityRange: &csi.CapacityRange{RequiredBytes: 600 * mebibyte},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := f.mustStage("node-1", volume.VolumeId)
	if err := fillUp(filepath.Join(path, "a"), 400*mebibyte); err != nil {
		t.Fatal(err)
	}
}

func TestASnapshotOfAMountedVolumeKeepsWhatWasThere(t *testing.T) {
	f := newFixture(t)
	volume := f.create("source", typeLocal, minimumBytes, "")
	path := f.mustStage("node-1", volume.VolumeId)
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(path, "file"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	response, err := f.controller.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: volume.VolumeId})
	if err != nil {
		t.Fatal(err)
	}
	write("after")
	// Both file systems have one identity and are mounted at the same time.
	restored := f.create("restored", typeLocal, 500*mebibyte, response.Snapshot.SnapshotId)
	content, err := os.ReadFile(filepath.Join(f.mustStage("node-1", restored.VolumeId), "file"))
	if err != nil || string(content) != "before" {
		t.Fatalf("the restored file says %q: %v", content, err)
	}
}

func TestALocalVolumeIsRefusedOnAnotherNode(t *testing.T) {
	f := newFixture(t)
	volume := f.create("bound", typeLocal, minimumBytes, "")
	if node := volume.AccessibleTopology[0].Segments[topologyKey]; node != "node-1" {
		t.Fatalf("the volume is on %q", node)
	}
	_, err := f.stage("node-2", volume.VolumeId)
	f.refused(err, codes.FailedPrecondition, "is on node node-1")
}

func TestANetworkVolumeMovesWhenItsNodeHasLetGo(t *testing.T) {
	f := newFixture(t)
	volume := f.create("free", typeNetwork, minimumBytes, "")
	if volume.AccessibleTopology != nil {
		t.Fatal("a network volume has a topology")
	}
	f.mustStage("node-1", volume.VolumeId)
	_, err := f.stage("node-2", volume.VolumeId)
	f.refused(err, codes.FailedPrecondition, "in use on node node-1")
	f.unstage("node-1", volume.VolumeId)
	f.mustStage("node-2", volume.VolumeId)
}

func TestAVolumeForOnePodIsRefusedToASecond(t *testing.T) {
	f := newFixture(t)
	volume := f.create("single", typeLocal, minimumBytes, "")
	staged := f.mustStage("node-1", volume.VolumeId)
	publish := func(target string) error {
		_, err := f.nodes["node-1"].NodePublishVolume(context.Background(), &csi.NodePublishVolumeRequest{
			VolumeId: volume.VolumeId, StagingTargetPath: staged, TargetPath: target,
			VolumeCapability: capability(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER),
		})
		return err
	}
	first := filepath.Join(f.directory, "first")
	if err := publish(first); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(context.Background(), first); err != nil {
			t.Error(err)
		}
	})
	f.refused(publish(filepath.Join(f.directory, "second")), codes.FailedPrecondition, "already used at")
}

func TestALostVolumeIsNotMadeAnew(t *testing.T) {
	f := newFixture(t)
	volume := f.create("lost", typeLocal, minimumBytes, "")
	if err := os.Remove(f.controller.store.image(volumes, volume.VolumeId)); err != nil {
		t.Fatal(err)
	}
	_, err := f.stage("node-1", volume.VolumeId)
	f.refused(err, codes.NotFound, "lost its data")
}

func TestAMountedVolumeIsNotDeleted(t *testing.T) {
	f := newFixture(t)
	volume := f.create("used", typeLocal, minimumBytes, "")
	f.mustStage("node-1", volume.VolumeId)
	_, err := f.controller.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: volume.VolumeId})
	f.refused(err, codes.FailedPrecondition, "still mounted")
}
