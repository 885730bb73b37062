"""Many runs become curves, intervals, tables and pictures. Reads run folders; never trains."""
