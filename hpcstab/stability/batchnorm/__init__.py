"""BatchNorm: its layers set, its running statistics looked at, repaired, estimated anew."""
