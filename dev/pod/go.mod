module backlot.dev/dev/pod

go 1.26
