// Command kubernetes is every Kubernetes program of the development cluster in one static binary.
//
// The program is chosen by the name it was called with (the cluster tool makes one link per name)
// or by the first argument: `kubernetes kubectl get nodes`. One binary links the code that they
// share once, which saves minutes of build time and hundreds of megabytes.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// etcd brings its own main function and no cobra command.
const etcd = "etcd"

// programs maps each name to what builds its command. Building is put off, because the commands
// register flags in global sets and must not see each other.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

func main() {
	name := filepath.Base(os.Args[0])
	if !knows(name) && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	if name == etcd {
		etcdmain.Main(os.Args)
		return
	}
	if !knows(name) {
		fmt.Fprintf(os.Stderr, "no program named %q: use one of %s\n", name, strings.Join(names(), ", "))
		os.Exit(2)
	}
	os.Exit(cli.Run(programs[name]()))
}

func knows(name string) bool {
	_, known := programs[name]
	return known || name == etcd
}

func names() []string {
	all := []string{etcd}
	for name := range programs {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}
