"""What a run tells: numbers, progress, results, and the rules that they came about under."""
