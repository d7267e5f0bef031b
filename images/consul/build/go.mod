module consul

go 1.25.9

require (
	github.com/hashicorp/consul v1.22.7
	github.com/hashicorp/consul/api v1.34.1
)

exclude (
	github.com/hashicorp/go-msgpack v1.1.5
	github.com/hashicorp/go-msgpack v1.1.6
)
