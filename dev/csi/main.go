// Command csi is the storage driver of the development cluster: a CSI driver whose volumes are
// sparse files with XFS on loop devices.
//
// It exists so that tests meet real storage: a volume has a size and fills up, grows while it is
// mounted, stays on its node, can be lost, and can be copied. It is a test fixture: every node of
// the cluster is on one machine, so the volumes of all nodes lie in one folder, and what binds a
// volume to its node is a rule of this driver, not a cable.
//
// One process serves the controller, and one per node serves the node; all share the folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

const (
	driverName    = "csi.backlot.dev"
	driverVersion = "1.0.0"
)

func main() {
	log.SetFlags(log.LstdFlags | log.Lmicroseconds | log.LUTC)
	directory := flag.String("directory", "", "folder of the volumes, shared by all nodes")
	socket := flag.String("socket", "", "path of the unix socket to serve on")
	node := flag.String("node", "", "name of the node to serve; empty serves the controller")
	registry := flag.String("registry", "", "folder in which the kubelet looks for plug-ins; needs -node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *directory, *socket, *node, *registry); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, directory, socket, node, registry string) error {
	if directory == "" || socket == "" {
		return errors.New("-directory and -socket are needed")
	}
	store, err := openStore(directory)
	if err != nil {
		return err
	}
	server := newServer(store, node)
	if registry != "" {
		if node == "" {
			return errors.New("-registry is of use with -node only")
		}
		go func() {
			if err := register(ctx, filepath.Join(registry, driverName+"-reg.sock"), socket); err != nil {
				log.Fatalf("register with the kubelet: %v", err)
			}
		}()
	}
	return serve(ctx, server, socket)
}

// newServer offers the controller when node is empty and the node's half otherwise.
func newServer(store *store, node string) *grpc.Server {
	server := grpc.NewServer(grpc.UnaryInterceptor(logCalls))
	csi.RegisterIdentityServer(server, &identity{})
	if node == "" {
		csi.RegisterControllerServer(server, &controllerService{store: store})
	} else {
		csi.RegisterNodeServer(server, &nodeService{store: store, name: node})
	}
	return server
}

// serve answers on a unix socket until the context ends. A socket file that an earlier run left is replaced.
func serve(ctx context.Context, server *grpc.Server, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", socket, err)
	}
	go func() {
		<-ctx.Done()
		server.GracefulStop()
	}()
	return server.Serve(listener)
}

func logCalls(ctx context.Context, request any, call *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	response, err := next(ctx, request)
	if err != nil {
		log.Printf("%s: %v", call.FullMethod, err)
	}
	return response, err
}

type identity struct {
	csi.UnimplementedIdentityServer
}

func (*identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: driverVersion}, nil
}

func (*identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (*identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := func(kind csi.PluginCapability_Service_Type) *csi.PluginCapability {
		return &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: kind}}}
	}
	online := &csi.PluginCapability{Type: &csi.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE},
	}}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{
		service(csi.PluginCapability_Service_CONTROLLER_SERVICE),
		service(csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		online,
	}}, nil
}
