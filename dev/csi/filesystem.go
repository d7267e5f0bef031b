package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// mkfs.xfs refuses smaller devices.
const minimumBytes = 300 << 20

// mountPoint is one line of the kernel's mount table.
type mountPoint struct {
	path   string
	source string
}

func execute(ctx context.Context, name string, arguments ...string) (string, error) {
	output, err := exec.CommandContext(ctx, name, arguments...).CombinedOutput()
	text := strings.TrimSpace(string(output))
	if err != nil {
		return text, fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, text)
	}
	return text, nil
}

func format(ctx context.Context, image string, sizeBytes int64) error {
	if err := resize(image, sizeBytes); err != nil {
		return err
	}
	_, err := execute(ctx, "mkfs.xfs", "-q", "-f", image)
	return err
}

// resize changes the length of a sparse file and creates it when it is absent.
func resize(image string, sizeBytes int64) error {
	file, err := os.OpenFile(image, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(sizeBytes), file.Close())
}

// copyImage copies the file, holes as holes. The file system on it, where mounted, is frozen meanwhile, so that the copy is what
// a crash at that moment would have left.
func copyImage(ctx context.Context, from, to string) (err error) {
	mounted, err := mountsOf(ctx, from)
	if err != nil {
		return err
	}
	if len(mounted) > 0 {
		if _, err := execute(ctx, "fsfreeze", "--freeze", mounted[0]); err != nil {
			return err
		}
		defer func() {
			_, thaw := execute(context.WithoutCancel(ctx), "fsfreeze", "--unfreeze", mounted[0])
			err = errors.Join(err, thaw)
		}()
	}
	_, err = execute(ctx, "cp", "--sparse=always", "--reflink=auto", from, to)
	return err
}

// loopDevice returns the device that the file is attached to, or nothing.
func loopDevice(ctx context.Context, image string) (string, error) {
	output, err := execute(ctx, "losetup", "--noheadings", "--output", "NAME", "--associated", image)
	if err != nil {
		return "", err
	}
	device, _, _ := strings.Cut(output, "\n")
	return strings.TrimSpace(device), nil
}

// attach mounts the file. The loop device is given back by the kernel at the last unmount.
// nouuid: a restored snapshot has the identity of the file system that it was taken from. discard: freed blocks become holes.
func attach(ctx context.Context, image, target string) error {
	_, err := execute(ctx, "mount", "-t", "xfs", "-o", "loop,nouuid,discard", image, target)
	return err
}

// grow lets a mounted file system fill the file. It does nothing when it does already.
func grow(ctx context.Context, image, mounted string) error {
	device, err := loopDevice(ctx, image)
	if err != nil {
		return err
	}
	if device == "" {
		return fmt.Errorf("%s is attached to no loop device", image)
	}
	if _, err := execute(ctx, "losetup", "--set-capacity", device); err != nil {
		return err
	}
	_, err = execute(ctx, "xfs_growfs", mounted)
	return err
}

// mountsOf lists where the file system in the file is mounted.
func mountsOf(ctx context.Context, image string) ([]string, error) {
	device, err := loopDevice(ctx, image)
	if err != nil || device == "" {
		return nil, err
	}
	table, err := mountTable()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, line := range table {
		if line.source == device {
			found = append(found, line.path)
		}
	}
	return found, nil
}

func isMounted(path string) (bool, error) {
	table, err := mountTable()
	if err != nil {
		return false, err
	}
	for _, line := range table {
		if line.path == path {
			return true, nil
		}
	}
	return false, nil
}

// unmount takes a mount away and removes the empty folder; neither need be there. It never removes what is in a folder: that
// could be the data of a volume that is still mounted.
func unmount(ctx context.Context, path string) error {
	mounted, err := isMounted(path)
	if err != nil {
		return err
	}
	if mounted {
		if _, err := execute(ctx, "umount", path); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func mountTable() ([]mountPoint, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var table []mountPoint
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		fields, source := strings.Fields(before), strings.Fields(after)
		if !found || len(fields) < 5 || len(source) < 2 {
			return nil, fmt.Errorf("mount table has an unreadable line: %q", lines.Text())
		}
		table = append(table, mountPoint{path: unescape.Replace(fields[4]), source: source[1]})
	}
	return table, lines.Err()
}
