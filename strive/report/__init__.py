"""What a person looks at: scores before training, dynamics after it, tables, the demonstration."""
