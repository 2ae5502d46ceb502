"""What carries a publish between processes: frames in, frames out, and nothing else."""
