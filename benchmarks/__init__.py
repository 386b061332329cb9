"""What is measured, against whom, and what came out last (README.md)."""
