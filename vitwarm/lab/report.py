def write_report(found, out):
    return [out]
