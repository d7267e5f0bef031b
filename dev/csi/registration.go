package main

import (
	"context"
	"log"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// register answers the kubelet, which finds plug-ins by the sockets in its registry folder and asks each what it is.
// A restarted kubelet asks again.
func register(ctx context.Context, socket, endpoint string) error {
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{endpoint: endpoint})
	return serve(ctx, server, socket)
}

type registrar struct {
	registration.UnimplementedRegistrationServer
	endpoint string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              driverName,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if status.PluginRegistered {
		log.Print("the kubelet has registered this driver")
	} else {
		log.Printf("the kubelet refused this driver: %s", status.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}
