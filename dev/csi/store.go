package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// store keeps volumes and snapshots as folders: `image` is the sparse file, `record.json` says what it is.
//
// The record is written last and by rename, so that a folder without one is an interrupted creation and is made again.
// Changes to one volume or snapshot are made under a file lock, which holds between the processes of the driver too.
type store struct {
	directory string
}

const (
	volumes   = "volumes"
	snapshots = "snapshots"
)

// record describes a volume or a snapshot.
type record struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"sizeBytes"`
	// Node is the only node that can use the volume; empty means that every node can.
	Node string `json:"node,omitempty"`
	// Source is the snapshot of a restored volume, or the volume of a snapshot.
	Source  string    `json:"source,omitempty"`
	Created time.Time `json:"created"`
}

var validID = regexp.MustCompile(`^[0-9a-f]{32}$`)

func openStore(directory string) (*store, error) {
	absolute, err := filepath.Abs(directory)
	if err != nil {
		return nil, err
	}
	for _, kind := range []string{volumes, snapshots} {
		if err := os.MkdirAll(filepath.Join(absolute, kind), 0o700); err != nil {
			return nil, err
		}
	}
	return &store{directory: absolute}, nil
}

// identify derives the id from the name, so that a repeated request finds what the first one made.
func identify(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:16])
}

func (s *store) folder(kind, id string) string { return filepath.Join(s.directory, kind, id) }
func (s *store) image(kind, id string) string  { return filepath.Join(s.folder(kind, id), "image") }

// read returns nil when there is no such volume or snapshot.
func (s *store) read(kind, id string) (*record, error) {
	if !validID.MatchString(id) {
		return nil, nil
	}
	content, err := os.ReadFile(filepath.Join(s.folder(kind, id), "record.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := &record{}
	if err := json.Unmarshal(content, found); err != nil {
		return nil, fmt.Errorf("record of %s %s: %w", kind, id, err)
	}
	return found, nil
}

func (s *store) write(kind, id string, r *record) error {
	content, err := json.Marshal(r)
	if err != nil {
		return err
	}
	target := filepath.Join(s.folder(kind, id), "record.json")
	if err := os.WriteFile(target+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(target+".new", target)
}

// create makes the folder anew, lets fill write the image, and commits by writing the record.
func (s *store) create(kind, id string, r *record, fill func(image string) error) error {
	if err := os.RemoveAll(s.folder(kind, id)); err != nil {
		return err
	}
	if err := os.Mkdir(s.folder(kind, id), 0o700); err != nil {
		return err
	}
	if err := fill(s.image(kind, id)); err != nil {
		return errors.Join(err, os.RemoveAll(s.folder(kind, id)))
	}
	return s.write(kind, id, r)
}

func (s *store) remove(kind, id string) error {
	if !validID.MatchString(id) {
		return nil
	}
	return errors.Join(os.RemoveAll(s.folder(kind, id)), os.RemoveAll(s.folder(kind, id)+".lock"))
}

// locked runs act while no other call of any process of the driver works on the same volume or snapshot.
func (s *store) locked(kind, id string, act func() error) error {
	if !validID.MatchString(id) {
		return act()
	}
	lock, err := os.OpenFile(s.folder(kind, id)+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s %s: %w", kind, id, err)
	}
	return act()
}
