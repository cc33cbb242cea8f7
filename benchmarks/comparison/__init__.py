"""The same steps on several candidates in turns: revisions of qtasks, qtasks behind a proxy, and its peers."""
