"""What is measured with: clocks, single calls, profiles, compilers, recorded launches."""
