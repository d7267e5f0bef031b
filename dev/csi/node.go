package main

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// nodeService mounts volumes on one node.
type nodeService struct {
	csi.UnimplementedNodeServer
	store *store
	name  string
}

func (n *nodeService) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId:             n.name,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{topologyKey: n.name}},
	}, nil
}

func (n *nodeService) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, capability := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: capability}},
		})
	}
	return response, nil
}

// NodeStageVolume mounts the file system once per node. A volume that another node has mounted is refused, as a storage system
// with single attachment would; one whose node died has no mount any more and may be taken.
func (n *nodeService) NodeStageVolume(ctx context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if request.StagingTargetPath == "" || request.VolumeCapability == nil {
		return nil, status.Error(codes.InvalidArgument, "staging_target_path or volume_capability is missing")
	}
	if err := checkCapability(request.VolumeCapability); err != nil {
		return nil, err
	}
	err := n.store.locked(volumes, request.VolumeId, func() error {
		volume, err := existingVolume(n.store, request.VolumeId)
		if err != nil {
			return err
		}
		if volume.Node != "" && volume.Node != n.name {
			return status.Errorf(codes.FailedPrecondition, "volume %q is on node %s and cannot be used on %s", request.VolumeId, volume.Node, n.name)
		}
		image := n.store.image(volumes, request.VolumeId)
		mounted, err := mountsOf(ctx, image)
		if err != nil {
			return err
		}
		owner, err := n.owner(request.VolumeId)
		if err != nil {
			return err
		}
		if len(mounted) > 0 && owner != n.name {
			return status.Errorf(codes.FailedPrecondition, "volume %q is in use on node %s", request.VolumeId, owner)
		}
		if err := os.WriteFile(n.ownerFile(request.VolumeId), []byte(n.name), 0o600); err != nil {
			return err
		}
		if err := n.mount(ctx, image, request.StagingTargetPath); err != nil {
			return err
		}
		return grow(ctx, image, request.StagingTargetPath)
	})
	return &csi.NodeStageVolumeResponse{}, err
}

func (n *nodeService) mount(ctx context.Context, image, target string) error {
	if err := os.MkdirAll(target, 0o750); err != nil {
		return err
	}
	mounted, err := isMounted(target)
	if err != nil || mounted {
		return err
	}
	return attach(ctx, image, target)
}

func (n *nodeService) NodeUnstageVolume(ctx context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if request.VolumeId == "" || request.StagingTargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id or staging_target_path is missing")
	}
	err := n.store.locked(volumes, request.VolumeId, func() error { return unmount(ctx, request.StagingTargetPath) })
	return &csi.NodeUnstageVolumeResponse{}, err
}

// NodePublishVolume shows the staged file system to one pod.
func (n *nodeService) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if request.StagingTargetPath == "" || request.TargetPath == "" || request.VolumeCapability == nil {
		return nil, status.Error(codes.InvalidArgument, "staging_target_path, target_path or volume_capability is missing")
	}
	if err := checkCapability(request.VolumeCapability); err != nil {
		return nil, err
	}
	err := n.store.locked(volumes, request.VolumeId, func() error { return n.publish(ctx, request) })
	return &csi.NodePublishVolumeResponse{}, err
}

func (n *nodeService) publish(ctx context.Context, request *csi.NodePublishVolumeRequest) error {
	if _, err := existingVolume(n.store, request.VolumeId); err != nil {
		return err
	}
	mounted, err := mountsOf(ctx, n.store.image(volumes, request.VolumeId))
	if err != nil {
		return err
	}
	single := request.VolumeCapability.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	staged := false
	for _, path := range mounted {
		switch path {
		case request.TargetPath:
			return nil
		case request.StagingTargetPath:
			staged = true
		default:
			if single {
				return status.Errorf(codes.FailedPrecondition, "volume %q is for one pod and already used at %s", request.VolumeId, path)
			}
		}
	}
	if !staged {
		return status.Errorf(codes.FailedPrecondition, "volume %q is not staged at %s", request.VolumeId, request.StagingTargetPath)
	}
	if err := os.MkdirAll(request.TargetPath, 0o750); err != nil {
		return err
	}
	if _, err := execute(ctx, "mount", "--bind", request.StagingTargetPath, request.TargetPath); err != nil {
		return err
	}
	if request.Readonly {
		_, err = execute(ctx, "mount", "-o", "remount,bind,ro", request.TargetPath)
	}
	return err
}

func (n *nodeService) NodeUnpublishVolume(ctx context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if request.VolumeId == "" || request.TargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_id or target_path is missing")
	}
	err := n.store.locked(volumes, request.VolumeId, func() error { return unmount(ctx, request.TargetPath) })
	return &csi.NodeUnpublishVolumeResponse{}, err
}

func (n *nodeService) NodeExpandVolume(ctx context.Context, request *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if request.VolumePath == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_path is missing")
	}
	response := &csi.NodeExpandVolumeResponse{}
	err := n.store.locked(volumes, request.VolumeId, func() error {
		volume, err := n.mountedVolume(request.VolumeId, request.VolumePath)
		if err != nil {
			return err
		}
		response.CapacityBytes = volume.SizeBytes
		return grow(ctx, n.store.image(volumes, request.VolumeId), request.VolumePath)
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

func (n *nodeService) NodeGetVolumeStats(_ context.Context, request *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if request.VolumePath == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_path is missing")
	}
	if _, err := n.mountedVolume(request.VolumeId, request.VolumePath); err != nil {
		return nil, err
	}
	var stat syscall.Statfs_t
	if err := syscall.Statfs(request.VolumePath, &stat); err != nil {
		return nil, err
	}
	block := stat.Bsize
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: int64(stat.Blocks) * block, Available: int64(stat.Bavail) * block,
			Used: int64(stat.Blocks-stat.Bfree) * block,
		},
		{
			Unit: csi.VolumeUsage_INODES, Total: int64(stat.Files), Available: int64(stat.Ffree), Used: int64(stat.Files - stat.Ffree),
		},
	}}, nil
}

func (n *nodeService) mountedVolume(id, path string) (*record, error) {
	volume, err := existingVolume(n.store, id)
	if err != nil {
		return nil, err
	}
	mounted, err := isMounted(path)
	if err != nil {
		return nil, err
	}
	if !mounted {
		return nil, status.Errorf(codes.NotFound, "volume %q is not mounted at %s", id, path)
	}
	return volume, nil
}

// owner is the node that mounted the volume last; its word counts only while a mount exists.
func (n *nodeService) owner(id string) (string, error) {
	content, err := os.ReadFile(n.ownerFile(id))
	if os.IsNotExist(err) {
		return "", nil
	}
	return string(content), err
}

func (n *nodeService) ownerFile(id string) string {
	return filepath.Join(n.store.folder(volumes, id), "owner")
}
