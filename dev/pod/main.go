// Command pod is what the development cluster runs in containers of its own: the sandbox of every
// pod (`pod pause`), and the little server and tools with which the cluster tests itself.
//
// It needs nothing but the Linux kernel, so that its image is this one file.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const usage = `usage: pod pause | serve ADDRESS | fetch URL | resolve NAME | write FILE TEXT | read FILE | fill FILE BYTES | size FOLDER`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	command, operands := "", []string{"", ""}
	if len(arguments) > 0 {
		command = arguments[0]
		copy(operands, arguments[1:])
	}
	switch command {
	case "pause":
		return pause()
	case "serve":
		return serve(operands[0])
	case "fetch":
		return fetch(operands[0])
	case "resolve":
		return resolve(operands[0])
	case "write":
		return write(operands[0], operands[1])
	case "read":
		content, err := os.ReadFile(operands[0])
		fmt.Print(string(content))
		return err
	case "fill":
		return fill(operands[0], operands[1])
	case "size":
		return size(operands[0])
	default:
		return errors.New(usage)
	}
}

// pause holds the namespaces of a pod and reaps its orphans until it is told to end.
func pause() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return nil
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

func serve(address string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Printf("%s serves on %s\n", name, address)
	server := &http.Server{
		Addr:              address,
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
			fmt.Fprintln(response, name)
		}),
	}
	return server.ListenAndServe()
}

func fetch(url string) error {
	client := &http.Client{Timeout: 3 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func resolve(name string) error {
	addresses, err := net.LookupHost(name)
	for _, address := range addresses {
		fmt.Println(address)
	}
	return err
}

// write survives a crash right after it returned.
func write(path, text string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Sync(), file.Close())
}

// fill writes so many bytes, or says at how many the file system was full. It waits for the disk all along: written pages count
// as memory of the container until they are on it.
func fill(path, wanted string) error {
	total, err := strconv.ParseInt(wanted, 10, 64)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for index := range block {
		block[index] = byte(index * 7)
	}
	for written := int64(0); written < total; {
		count, err := file.Write(block[:min(int64(len(block)), total-written)])
		written += int64(count)
		if err == nil && written%(8<<20) == 0 {
			err = file.Sync()
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", written, err)
		}
	}
	return file.Sync()
}

// size prints how many bytes the file system of the folder can hold.
func size(folder string) error {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(folder, &stat); err != nil {
		return err
	}
	fmt.Println(int64(stat.Blocks) * stat.Bsize)
	return nil
}
