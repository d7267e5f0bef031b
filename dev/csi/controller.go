package main

import (
	"context"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	topologyKey = "topology.csi.backlot.dev/node"
	// typeParameter of a StorageClass: whether a volume is bound to its node ("local") or not ("network").
	typeParameter = "type"
	typeLocal     = "local"
	typeNetwork   = "network"

	defaultBytes = 1 << 30
	maximumBytes = 16 << 40
	blockBytes   = 4096
)

// controllerService creates, grows, copies and deletes volumes.
type controllerService struct {
	csi.UnimplementedControllerServer
	store *store
	// fallbackNode gets a local volume when the request names no node; empty refuses it.
	fallbackNode string
}

func (c *controllerService) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, capability := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}

func (c *controllerService) CreateVolume(ctx context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if request.Name == "" {
		return nil, status.Error(codes.InvalidArgument, "name is missing")
	}
	if err := checkCapabilities(request.VolumeCapabilities); err != nil {
		return nil, err
	}
	size, err := sizeOf(request.CapacityRange, defaultBytes)
	if err != nil {
		return nil, err
	}
	wanted := &record{Name: request.Name, SizeBytes: size, Created: time.Now().UTC()}
	if wanted.Node, err = c.place(request); err != nil {
		return nil, err
	}
	if request.VolumeContentSource != nil {
		wanted.Source = request.VolumeContentSource.GetSnapshot().GetSnapshotId()
		if wanted.Source == "" {
			return nil, status.Error(codes.InvalidArgument, "volume_content_source: only a snapshot is supported")
		}
	}
	id := identify(request.Name)
	err = c.store.locked(volumes, id, func() error { return c.ensureVolume(ctx, id, wanted, request.CapacityRange) })
	if err != nil {
		return nil, err
	}
	volume := &csi.Volume{VolumeId: id, CapacityBytes: wanted.SizeBytes, ContentSource: request.VolumeContentSource}
	if wanted.Node != "" {
		volume.AccessibleTopology = []*csi.Topology{{Segments: map[string]string{topologyKey: wanted.Node}}}
	}
	return &csi.CreateVolumeResponse{Volume: volume}, nil
}

// ensureVolume creates the volume, or takes over the size and node of the one that an earlier request made.
func (c *controllerService) ensureVolume(ctx context.Context, id string, wanted *record, limits *csi.CapacityRange) error {
	existing, err := c.store.read(volumes, id)
	if err != nil {
		return err
	}
	if existing != nil {
		if !fits(existing.SizeBytes, limits) || existing.Source != wanted.Source {
			return status.Errorf(codes.AlreadyExists, "volume %q exists with %d bytes from %q, which is not what is wanted",
				wanted.Name, existing.SizeBytes, existing.Source)
		}
		*wanted = *existing
		return nil
	}
	if wanted.Source == "" {
		return c.store.create(volumes, id, wanted, func(image string) error { return format(ctx, image, wanted.SizeBytes) })
	}
	source, err := c.store.read(snapshots, wanted.Source)
	if err != nil {
		return err
	}
	if source == nil {
		return status.Errorf(codes.NotFound, "snapshot %q does not exist", wanted.Source)
	}
	if source.SizeBytes > wanted.SizeBytes {
		return status.Errorf(codes.OutOfRange, "a volume of %d bytes cannot hold snapshot %q of %d bytes",
			wanted.SizeBytes, wanted.Source, source.SizeBytes)
	}
	return c.store.create(volumes, id, wanted, func(image string) error {
		if err := copyImage(ctx, c.store.image(snapshots, wanted.Source), image); err != nil {
			return err
		}
		return resize(image, wanted.SizeBytes)
	})
}

// place decides which node a volume belongs to: none for the network type, else the first that the scheduler prefers.
func (c *controllerService) place(request *csi.CreateVolumeRequest) (string, error) {
	switch kind := request.Parameters[typeParameter]; kind {
	case typeNetwork:
		return "", nil
	case "", typeLocal:
	default:
		return "", status.Errorf(codes.InvalidArgument, "parameter %s is %q: use %s or %s", typeParameter, kind, typeLocal, typeNetwork)
	}
	wishes := request.GetAccessibilityRequirements()
	for _, topology := range append(wishes.GetPreferred(), wishes.GetRequisite()...) {
		if node := topology.GetSegments()[topologyKey]; node != "" {
			return node, nil
		}
	}
	if c.fallbackNode == "" {
		return "", status.Errorf(codes.ResourceExhausted, "a local volume needs a node: no topology has the key %s", topologyKey)
	}
	return c.fallbackNode, nil
}

func (c *controllerService) DeleteVolume(ctx context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if request.VolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id is missing")
	}
	err := c.store.locked(volumes, request.VolumeId, func() error {
		existing, err := c.store.read(volumes, request.VolumeId)
		if err != nil || existing == nil {
			return err
		}
		mounted, err := mountsOf(ctx, c.store.image(volumes, request.VolumeId))
		if err != nil {
			return err
		}
		if len(mounted) > 0 {
			return status.Errorf(codes.FailedPrecondition, "volume %q is still mounted at %s", request.VolumeId, mounted[0])
		}
		return c.store.remove(volumes, request.VolumeId)
	})
	return &csi.DeleteVolumeResponse{}, err
}

func (c *controllerService) ControllerExpandVolume(_ context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	if request.CapacityRange == nil {
		return nil, status.Error(codes.InvalidArgument, "capacity_range is missing")
	}
	response := &csi.ControllerExpandVolumeResponse{NodeExpansionRequired: true}
	err := c.store.locked(volumes, request.VolumeId, func() error {
		existing, err := c.existing(request.VolumeId)
		if err != nil {
			return err
		}
		size, err := sizeOf(request.CapacityRange, existing.SizeBytes)
		if err != nil {
			return err
		}
		response.CapacityBytes = max(size, existing.SizeBytes)
		if size <= existing.SizeBytes {
			return nil
		}
		if err := resize(c.store.image(volumes, request.VolumeId), size); err != nil {
			return err
		}
		existing.SizeBytes = size
		return c.store.write(volumes, request.VolumeId, existing)
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

func (c *controllerService) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if request.VolumeId == "" || len(request.VolumeCapabilities) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume_id or volume_capabilities is missing")
	}
	if _, err := c.existing(request.VolumeId); err != nil {
		return nil, err
	}
	if err := checkCapabilities(request.VolumeCapabilities); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      request.VolumeContext,
		VolumeCapabilities: request.VolumeCapabilities,
		Parameters:         request.Parameters,
	}}, nil
}

func (c *controllerService) CreateSnapshot(ctx context.Context, request *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if request.Name == "" || request.SourceVolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "name or source_volume_id is missing")
	}
	id := identify(request.Name)
	var snapshot *record
	err := c.store.locked(snapshots, id, func() error {
		existing, err := c.store.read(snapshots, id)
		if err != nil {
			return err
		}
		if existing != nil {
			if existing.Source != request.SourceVolumeId {
				return status.Errorf(codes.AlreadyExists, "snapshot %q exists, of volume %q", request.Name, existing.Source)
			}
			snapshot = existing
			return nil
		}
		return c.store.locked(volumes, request.SourceVolumeId, func() error {
			source, err := c.existing(request.SourceVolumeId)
			if err != nil {
				return err
			}
			snapshot = &record{Name: request.Name, SizeBytes: source.SizeBytes, Source: request.SourceVolumeId, Created: time.Now().UTC()}
			return c.store.create(snapshots, id, snapshot, func(image string) error {
				return copyImage(ctx, c.store.image(volumes, request.SourceVolumeId), image)
			})
		})
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId:     id,
		SourceVolumeId: snapshot.Source,
		SizeBytes:      snapshot.SizeBytes,
		CreationTime:   timestamppb.New(snapshot.Created),
		ReadyToUse:     true,
	}}, nil
}

func (c *controllerService) DeleteSnapshot(_ context.Context, request *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if request.SnapshotId == "" {
		return nil, status.Error(codes.InvalidArgument, "snapshot_id is missing")
	}
	err := c.store.locked(snapshots, request.SnapshotId, func() error { return c.store.remove(snapshots, request.SnapshotId) })
	return &csi.DeleteSnapshotResponse{}, err
}

func (c *controllerService) existing(id string) (*record, error) { return existingVolume(c.store, id) }

// existingVolume fails with NotFound when there is no such volume, or when its file was taken away.
func existingVolume(store *store, id string) (*record, error) {
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id is missing")
	}
	found, err := store.read(volumes, id)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, status.Errorf(codes.NotFound, "volume %q does not exist", id)
	}
	if _, err := os.Stat(store.image(volumes, id)); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %q has lost its data: %v", id, err)
	}
	return found, nil
}

func checkCapabilities(capabilities []*csi.VolumeCapability) error {
	if len(capabilities) == 0 {
		return status.Error(codes.InvalidArgument, "volume_capabilities are missing")
	}
	for _, capability := range capabilities {
		if err := checkCapability(capability); err != nil {
			return err
		}
	}
	return nil
}

func checkCapability(capability *csi.VolumeCapability) error {
	if capability.GetMount() == nil {
		return status.Error(codes.InvalidArgument, "only mounted volumes are supported, no block devices")
	}
	if kind := capability.GetMount().FsType; kind != "" && kind != "xfs" {
		return status.Errorf(codes.InvalidArgument, "fs_type is %q: only xfs is supported", kind)
	}
	switch mode := capability.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return nil
	default:
		return status.Errorf(codes.InvalidArgument, "access mode %s is not supported: a volume is used by one node at a time", mode)
	}
}

// sizeOf rounds the wish up to what a file system can have.
func sizeOf(limits *csi.CapacityRange, fallback int64) (int64, error) {
	size := limits.GetRequiredBytes()
	if size == 0 {
		size = fallback
		if limit := limits.GetLimitBytes(); limit > 0 {
			size = min(size, limit)
		}
	}
	size = max(size, minimumBytes)
	size = (size + blockBytes - 1) / blockBytes * blockBytes
	if size > maximumBytes || !fits(size, limits) {
		return 0, status.Errorf(codes.OutOfRange, "no volume of %d to %d bytes can be had: the smallest has %d, the largest %d",
			limits.GetRequiredBytes(), limits.GetLimitBytes(), int64(minimumBytes), int64(maximumBytes))
	}
	return size, nil
}

func fits(size int64, limits *csi.CapacityRange) bool {
	return size >= limits.GetRequiredBytes() && (limits.GetLimitBytes() == 0 || size <= limits.GetLimitBytes())
}
